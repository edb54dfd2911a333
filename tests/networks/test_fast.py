# SPDX-License-Identifier: Apache-2.0
"""Fast layers give the numbers of plain ones, follow their weights, and leave gradients alone."""

from __future__ import annotations

import copy

import pytest
import torch
from golden_support import Golden
from tiny import MARKS, canvas, numbers, text, tiny_network, view
from torch import Tensor, nn
from torch.testing import assert_close

from monai_unimedvl.networks.cache import KVCache
from monai_unimedvl.networks.decoding import NextWord
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import PackedSequence, Segment, pack, step

SAMPLES: list[list[Segment]] = [
    [view(2, 2), text(1, 2), canvas(2, 2, noisy=True, time=0.3)],
    [canvas(1, 2), text(3)],
    [text(2)],
]


def packed(dtype: torch.dtype) -> PackedSequence:
    seq = pack(SAMPLES, MARKS)
    return seq.with_latents(seq.latents.to(dtype), seq.times)


@torch.no_grad()
def states(network: UniMedVL, seq: PackedSequence) -> list[Tensor]:
    """Of a pack without and with a cache, and scores of the next words of two samples, three times."""
    found = network(seq)
    cache = KVCache(network.decoder, 3)
    read = [[part for part in sample if not getattr(part, "noisy", False)] for sample in SAMPLES]
    start = pack(read, MARKS)
    network(start.with_latents(start.latents.to(seq.latents.dtype), start.times), cache)
    drawn = pack([[canvas(2, 2, noisy=True, time=0.5)], [], []], MARKS, start=cache.positions)
    drawn = drawn.with_latents(drawn.latents.to(seq.latents.dtype), drawn.times)
    other = network(drawn, cache, keep=False)
    words, flat = [], NextWord(network)
    for ids in ([4, 5], [7, 1]):
        words.append(flat(torch.tensor(ids), [2, 0], cache))
    return [found.hidden, found.velocity, other.velocity, *words]


@pytest.mark.parametrize(
    "dtype, atol", [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.3)]
)
@pytest.mark.parametrize("shape", [{}, {"qk_norm": False, "tied": True}], ids=str)
def test_fast_layers_give_the_numbers_of_plain_ones(dtype: torch.dtype, atol: float, shape: dict) -> None:
    network = tiny_network(decoder=shape).to(dtype)
    wanted = states(network, packed(dtype))
    make_fast(network, compiled=False)
    found = states(network, packed(dtype))
    assert_close(found, wanted, atol=atol, rtol=0)
    assert all(
        layer.fast.experts.keys() == {"understanding", "generation"} for layer in network.decoder.layers
    )


@torch.no_grad()
def test_golden_words_of_fast_layers(gold: Golden) -> None:
    network = make_fast(gold.build(), compiled=False)
    hidden = network(pack([[gold.text("text.ids")]], gold.marks)).hidden
    gold.check("text.prefill_logits", network.logits(hidden))
    prompts = [[gold.text("batch.ids0")], [gold.text("batch.ids1")]]
    cache = KVCache(network.decoder, 2)
    network(pack(prompts, gold.marks), cache)
    flat, ids, logits = NextWord(network), torch.full((2,), gold.marks.text_start), []
    for _ in gold["batch.decode_ids"]:
        logits.append(flat(ids, [0, 1], cache))
        ids = logits[-1].argmax(-1)
    gold.check("batch.decode_logits", torch.stack(logits))


@pytest.mark.parametrize("change", ["in place", "assigned", "trained"])
def test_fast_layers_follow_their_weights(change: str) -> None:
    network, other = make_fast(tiny_network(), compiled=False), tiny_network(seed=1)
    states(network, packed(torch.float64))
    if change == "trained":
        optimiser = torch.optim.SGD(network.parameters(), 0.1)
        network(packed(torch.float64)).hidden.square().mean().backward()
        optimiser.step()
        other = copy.deepcopy(network)
        for layer in other.decoder.layers:
            layer.fast = None
    else:
        network.load_state_dict(other.state_dict(), assign=change == "assigned")
    wanted = states(other, packed(torch.float64))
    assert_close(states(network, packed(torch.float64)), wanted, atol=1e-12, rtol=0)


def test_a_copy_of_a_fast_network_has_its_own_weights() -> None:
    network = make_fast(tiny_network().float(), compiled=False)
    before = states(network, packed(torch.float32))
    again = copy.deepcopy(network)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(0.5)
    assert not torch.allclose(states(again, packed(torch.float32))[0], before[0], atol=1e-3)
    assert_close(states(network, packed(torch.float32)), before)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_the_fast_head_follows_its_weight_and_a_copy_has_its_own(tied: bool) -> None:
    decoder = make_fast(tiny_network(decoder={"tied": tied}).float(), compiled=False).decoder
    hidden = numbers(2, decoder.embed.embedding_dim).float()
    first = decoder.logits(hidden)
    again = copy.deepcopy(decoder)
    for one, factor in ((decoder, 2), (again, 3)):
        (one.head or one.embed).weight.mul_(factor)
        assert_close(one.logits(hidden), factor * first)
    if not tied:
        decoder.head = Doubled(*reversed(decoder.head.weight.shape), bias=False)
        decoder.head.weight = again.head.weight
        assert_close(decoder.logits(hidden), 6 * first)


def test_gradients_go_through_the_plain_code() -> None:
    network, plain = make_fast(tiny_network(), compiled=False), tiny_network()
    for one in (network, plain):
        one(packed(torch.float64)).hidden.square().mean().backward()
    for (name, p), (_, other) in zip(network.named_parameters(), plain.named_parameters(), strict=True):
        assert_close(p.grad, other.grad, atol=1e-14, rtol=0, msg=name)
    assert network.decoder.layers[0].fast.experts == {}


class Doubled(nn.Linear):
    """No plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_what_is_no_plain_layer_or_is_watched_stays_as_it_is(tiny: UniMedVL) -> None:
    make_fast(tiny, compiled=False)
    first, second = tiny.decoder.layers
    own = first.attention.q.understanding
    odd = Doubled(own.in_features, own.out_features).double()
    odd.load_state_dict(own.state_dict())
    first.attention.q.understanding = odd
    seen: list[int] = []
    second.mlp.generation.gate.register_forward_hook(lambda *_: seen.append(1))
    wanted = copy.deepcopy(tiny)
    for layer in wanted.decoder.layers:
        layer.fast = None
    assert_close(
        states(tiny, packed(torch.float64)), states(wanted, packed(torch.float64)), atol=1e-12, rtol=0
    )
    assert seen and first.fast.experts == second.fast.experts == {}
    assert make_fast(tiny, compiled=False).decoder.layers[0].fast is None


def test_a_network_without_layers_gets_one_line() -> None:
    with pytest.raises(ValueError, match="no layer in Linear: pass a UniMedVL"):
        make_fast(nn.Linear(1, 1))


@pytest.mark.slow
def test_compiled_passes_give_the_numbers_of_plain_ones() -> None:
    network = tiny_network()
    wanted = states(network, packed(torch.float64))
    assert_close(states(make_fast(network), packed(torch.float64)), wanted, atol=1e-11, rtol=0)
    single = KVCache(network.decoder, 1)
    with torch.no_grad():
        network(pack([[text(1, 2)]], MARKS), single)
        fork = single.fork([0])
        hidden = network(step(torch.tensor([3]), [0], fork.positions), fork).hidden
        found = NextWord(network)(torch.tensor([3]), [0], single)
    assert_close(found, network.logits(hidden), atol=1e-11, rtol=0)
