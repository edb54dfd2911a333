# SPDX-License-Identifier: Apache-2.0
"""The flat decoder says what the decoder's own forward says: plain, watched, adapted, in 8 bits, compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_support import Golden
from tiny import MARKS, canvas, text, tiny_network, view
from torch import Tensor, nn
from torch.testing import assert_close

from monai_unimedvl.networks import decoding
from monai_unimedvl.networks.cache import KVCache
from monai_unimedvl.networks.decoding import NextWord, compile_words
from monai_unimedvl.networks.quantised import Int8Linear
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Segment, pack, step

PROMPTS: list[list[Segment]] = [
    [text(1, 2), view(2, 2), canvas(2, 1), text(3)],
    [text(9)],
    [view(1, 3), text(2)],
]
IDS = [[MARKS.text_start] * 3, [4, 7, 11], [5, 2, 5]]


def read(network: UniMedVL, prompts: list[list[Segment]]) -> KVCache:
    cache = KVCache(network.decoder, len(prompts), capacity=2)
    with torch.no_grad():
        network(pack(prompts, MARKS), cache)
    return cache


@torch.no_grad()
def own(network: UniMedVL, cache: KVCache, ids: Tensor, samples: list[int]) -> Tensor:
    """Through the forward of the decoder."""
    states = network(step(ids, samples, [cache.positions[s] for s in samples]), cache).hidden
    return network.logits(states)


def check(network: UniMedVL, samples: list[int], atol: float = 1e-12) -> NextWord:
    first, second = read(network, PROMPTS), read(network, PROMPTS)
    flat = NextWord(network)
    for ids in torch.tensor(IDS):
        ids = ids[: len(samples)]
        wanted = own(network, first, ids, samples)
        assert_close(flat(ids, samples, second), wanted, atol=atol, rtol=0)
        assert wanted.std() > 0.1
    assert (first.lengths, first.positions) == (second.lengths, second.positions)
    assert_close(first.keys, second.keys, atol=atol, rtol=0)
    assert_close(first.values, second.values, atol=atol, rtol=0)
    return flat


@pytest.mark.parametrize("samples", [[0], [1], [2, 0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("shape", [{}, {"tied": True, "qk_norm": False}, {"num_kv_heads": 4}], ids=str)
def test_the_flat_decoder_equals_the_forward(samples: list[int], shape: dict[str, int]) -> None:
    assert check(tiny_network(decoder=shape), samples).direct is not None


def test_golden_words_come_flat_too(gold: Golden) -> None:
    case, cache = gold.cases["text"], KVCache(gold.network.decoder, 1, capacity=4)
    with torch.no_grad():
        gold.network(pack([[gold.text("text.ids")]], gold.marks), cache)
    flat, ids, found = NextWord(gold.network), torch.tensor([gold.marks.text_start]), []
    for _ in range(case["steps"]):
        found.append(flat(ids, [0], cache)[0])
        ids = found[-1].argmax(-1, keepdim=True)
    gold.check("text.decode_logits", torch.stack(found))
    assert cache.lengths == [case["kv_len_after_decode"]]


class Adapted(nn.Module):
    """A linear layer with something beside it, as adapters have."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.beside = base, nn.Linear(base.in_features, base.out_features).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.beside(x)


def test_what_is_no_plain_layer_is_called_as_it_is(tiny: UniMedVL) -> None:
    plain = NextWord(tiny)(torch.tensor([4]), [0], read(tiny, PROMPTS))
    own_q = tiny.decoder.layers[0].attention.q
    own_q.understanding = Adapted(own_q.understanding)
    flat = check(tiny, [0, 2])
    assert flat.direct is not None
    assert (flat(torch.tensor([4]), [0], read(tiny, PROMPTS)) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("where", ["layer", "twins", "linear"])
def test_who_watches_the_layers_sees_every_word(tiny: UniMedVL, where: str) -> None:
    layer, seen = tiny.decoder.layers[1], []
    watched = {"layer": layer, "twins": layer.attention.v, "linear": layer.mlp.understanding.gate}[where]
    watched.register_forward_hook(lambda *_: seen.append(1))
    cache = read(tiny, PROMPTS)
    seen.clear()
    NextWord(tiny)(torch.tensor([4, 5]), [0, 1], cache)
    assert seen == [1]


def test_a_word_beyond_the_context_gets_one_line() -> None:
    network = tiny_network(decoder={"max_context": 18})
    cache, flat = read(network, PROMPTS), NextWord(network)
    flat(torch.tensor([4]), [0], cache)
    with pytest.raises(ValueError, match="hold 19 tokens, expected at most 18"):
        flat(torch.tensor([4]), [0], cache)


def int8(network: UniMedVL) -> UniMedVL:
    for layer in network.decoder.layers:
        for twins in (layer.attention.q, layer.attention.out):
            old = twins.understanding
            twins.understanding = Int8Linear(old.weight, old.bias, old.weight.dtype)
        mlp = layer.mlp.understanding
        mlp.down = Int8Linear(mlp.down.weight, None, mlp.down.weight.dtype)
    return network


def test_weights_of_8_bits_are_called_as_they_are(tiny: UniMedVL) -> None:
    check(int8(tiny), [0, 1])


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda network: network, int8], ids=["plain", "int8"])
def test_compiled_words_equal_eager_ones(
    change: Callable[[UniMedVL], UniMedVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "native", lambda *_: None)  # torch's compiler, where ours cannot be built
    network = compile_words(change(tiny_network()))
    flat = check(network, [0], atol=1e-11)
    assert flat.bare is not None
    check(network, [2, 0], atol=1e-11)
    network = compile_words(tiny_network().float())
    first, second = read(network.float(), [[text(1, 2)]]), read(network, [[text(1, 2)]])
    found = NextWord(network)(torch.tensor([3]), [0], first)
    assert_close(found, own(network, second, torch.tensor([3]), [0]), atol=1e-5, rtol=0)


def test_compiled_words_are_asked_for_and_need_a_decoder(tiny: UniMedVL) -> None:
    assert NextWord(tiny).bare is None
    assert NextWord(compile_words(tiny)).bare is not None
    with pytest.raises(ValueError, match="no decoder in Linear: pass a UniMedVL"):
        compile_words(nn.Linear(1, 1))
