# SPDX-License-Identifier: Apache-2.0
"""Which parameters learn: parts and patterns by name."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_network

from monai_unimedvl.training.parts import PARTS, count_parameters, freeze, part_of, understanding


def test_every_parameter_is_of_one_part() -> None:
    network = tiny_network()
    parts = {name: part_of(name) for name, _ in network.named_parameters()}
    assert set(parts.values()) == set(PARTS) - {"autoencoder"}  # a codec without parameters
    assert part_of("autoencoder.net.encoder.weight") == "autoencoder"
    assert parts["decoder.layers.0.attention.q.generation.weight"] == "generation"
    assert parts["decoder.norm.understanding.weight"] == "understanding"
    assert {parts["decoder.embed.weight"], parts["time_embed.fc1.weight"], parts["latent_in.bias"]} == {
        "heads"
    }
    counts = count_parameters(network)
    assert sum(counts.values()) == sum(p.numel() for p in network.parameters())
    assert counts["understanding"] == counts["generation"]


def test_parts_and_patterns_are_frozen() -> None:
    network = tiny_network()
    names = {name for name, _ in network.named_parameters()}
    learning = set(freeze(network, ["vision", "decoder.layers.0.*"]))
    frozen = names - learning
    assert learning == {name for name, p in network.named_parameters() if p.requires_grad}
    first = {name for name in names if name.startswith("decoder.layers.0.")}
    assert frozen == first | {name for name in names if name.startswith("vision.")}
    assert set(freeze(network)) == names  # all learn again


def test_the_autoencoder_never_learns_here() -> None:
    network = tiny_network()
    network.autoencoder.more = torch.nn.Parameter(torch.ones(1))
    assert "autoencoder.more" not in freeze(network)
    assert count_parameters(network, learning=True)["autoencoder"] == 0


def test_what_fits_nothing_or_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="frozen has 'vit', which fits no parameter"):
        freeze(tiny_network(), ["vit"])
    with pytest.raises(ValueError, match="leaves nothing to learn"):
        freeze(tiny_network(), ["*"])


def test_a_tied_embedding_learns_as_the_head_when_understanding_is_detached() -> None:
    assert "decoder.embed.*" in understanding(tiny_network())
    assert "decoder.embed.*" not in understanding(tiny_network(decoder={"tied": True}))
    assert "vision" not in understanding(tiny_network(vision=None))
