# SPDX-License-Identifier: Apache-2.0
"""Compiled layers: the same numbers and gradients as plain ones, and plain code without gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import MARKS, canvas, text, tiny_network, view
from torch import nn
from torch.testing import assert_close

from monai_unimedvl.networks.compiling import chosen, compile_layers
from monai_unimedvl.networks.decoder import Layer
from monai_unimedvl.sequence import Segment, pack

PACKS: dict[str, list[list[Segment]]] = {
    "words": [[text(1, 2, 3)], [text(4, 5)]],
    "everything": [[view(2, 2), text(1, 2), canvas(2, 2, noisy=True)], [canvas(1, 2), text(3)]],
    "longer": [[text(1, 2), canvas(2, 2, noisy=True)], [view(4, 3), text(3, 1, 2)], [text(2)]],
}


@pytest.mark.slow
def test_compiled_layers_give_the_numbers_and_gradients_of_plain_ones() -> None:
    plain = tiny_network().float()
    compiled = compile_layers(copy.deepcopy(plain))
    for samples in PACKS.values():
        gradients = []
        for network in (plain, compiled):
            seq = pack(samples, MARKS)
            seq = seq if seq.latents is None else seq.with_latents(seq.latents.float(), seq.times)
            network.zero_grad()
            hidden = network(seq).hidden
            hidden.square().mean().backward()
            found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
            gradients.append((hidden.detach(), found))
        assert_close(gradients[0], gradients[1], atol=2e-5, rtol=1e-4)


def test_without_gradients_and_without_asking_the_plain_code_runs() -> None:
    assert chosen(Layer.before, False) is Layer.before
    with torch.no_grad():
        assert chosen(Layer.before, True) is Layer.before
    assert chosen(Layer.before, True) is not Layer.before


def test_a_copy_of_a_compiled_network_is_compiled_and_another_one_not() -> None:
    network = compile_layers(tiny_network())
    again = copy.deepcopy(network)
    assert all(layer.compiled for layer in [*again.decoder.layers, *again.vision.layers])
    assert not any(layer.compiled for layer in tiny_network().decoder.layers)


def test_what_cannot_be_compiled_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no layer in Linear, expected a UniMedVL"):
        compile_layers(nn.Linear(1, 1))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler, expected g\\+\\+"):
        compile_layers(tiny_network())
