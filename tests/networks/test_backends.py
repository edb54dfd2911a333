# SPDX-License-Identifier: Apache-2.0
"""Every backend that runs on a CPU says what the usual one says: packs, pasts, drawings, golden numbers."""

from __future__ import annotations

import pytest
import torch
from golden_support import Golden
from tiny import MARKS, canvas, text, tiny_network, view
from torch import nn
from torch.testing import assert_close

from monai_unimedvl.networks.backends import Flex, Varlen, use_backend, window
from monai_unimedvl.networks.cache import KVCache
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Segment, pack, step

OTHERS = ["varlen", pytest.param("flex", marks=pytest.mark.slow)]  # its masks take seconds to be made
SAMPLES: list[list[Segment]] = [
    [view(2, 2), text(1, 2), canvas(2, 2, noisy=True, time=0.3), text(4)],
    [canvas(1, 2), text(3)],
    [text(2, 5, 6)],
    [text(1), canvas(2, 1, noisy=True, time=0.5), canvas(2, 1, noisy=True, time=0.5, joined=True)],
]


@torch.no_grad()
def in_two_steps(network: UniMedVL) -> list[torch.Tensor]:
    """States of a pack, of a cache read in two steps, of a drawing over it, and of words."""
    cache = KVCache(network.decoder, 4, capacity=3)
    found = [network(pack(SAMPLES, MARKS)).hidden]
    with torch.no_grad():
        for prompt in (
            [[view(2, 2)], [text(1)], [], [text(2, 3)]],
            [[text(4), view(1, 2)], [text(5)], [], []],
        ):
            found.append(network(pack(prompt, MARKS, start=cache.positions), cache).hidden)
        drawn = pack([[canvas(2, 2, noisy=True, time=0.5)], [], [text(3)], []], MARKS, start=cache.positions)
        found.append(network(drawn, cache, keep=False).hidden)
        words = step(torch.tensor([3, 4]), [0, 3], [cache.positions[0], cache.positions[3]])
        found.append(network(words, cache).hidden)
    return [*found, cache.keys[:, 0, :, : cache.lengths[0]]]


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_attends_as_the_usual_road(backend: str) -> None:
    network = tiny_network()
    wanted = in_two_steps(network)
    assert_close(in_two_steps(use_backend(network, backend)), wanted, atol=1e-12, rtol=0)
    kind = {"flex": Flex, "varlen": Varlen}[backend]
    with torch.no_grad():
        assert type(window(backend, pack(SAMPLES, MARKS).plan, None)) is kind


@pytest.mark.parametrize("backend", OTHERS)
def test_gradients_pass_through_a_backend(backend: str) -> None:
    networks = [tiny_network(), use_backend(tiny_network(), backend)]
    for network in networks:
        network(pack(SAMPLES, MARKS)).hidden.square().mean().backward()
    for (name, p), q in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert_close(q.grad, p.grad, atol=1e-12, rtol=0, msg=name)


@pytest.mark.parametrize("backend", OTHERS)
@torch.no_grad()
def test_golden_numbers_in_every_backend(gold: Golden, backend: str) -> None:
    network = use_backend(gold.build(), backend)
    hidden = network(pack([[gold.text("text.ids")]], gold.marks)).hidden
    gold.check("text.prefill_logits", network.logits(hidden))
    prompts, cache = [[gold.text("batch.ids0")], [gold.text("batch.ids1")]], KVCache(network.decoder, 2)
    seq = pack(prompts, gold.marks)
    hidden = network(seq, cache).hidden
    gold.check("batch.last_logits", network.logits(hidden[list(seq.last_at)]))


def test_what_is_no_backend_gets_one_line(tiny: UniMedVL) -> None:
    with pytest.raises(ValueError, match="backend is 'paged', expected one of sdpa, flex, varlen"):
        use_backend(tiny, "paged")
    with pytest.raises(ValueError, match="no decoder in Linear"):
        use_backend(nn.Linear(1, 1), "flex")
    assert window("flex", step(torch.tensor([1]), [0], [0]).plan, None) is None
    assert window("flex", pack([[]], MARKS).plan, None) is None
