# SPDX-License-Identifier: Apache-2.0
"""The decoder and its cache: golden text, the slow twin, and laws of packing and caching."""

from __future__ import annotations

import pytest
import reference
import torch
from golden_support import Golden, reading
from tiny import MARKS, canvas, text, tiny_network, view
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.networks.decoder import Decoder, KVCache
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Segment, pack, step


def close(actual: Tensor, wanted: Tensor) -> None:
    assert_close(actual, wanted, atol=1e-12, rtol=0)


def in_order(network: UniMedVL, samples: list[list[Segment]]) -> list[Tensor]:
    """States of each sample in the order of reading."""
    seq = pack(samples, MARKS)
    at = reading(seq)
    return list(network(seq).hidden[at].split(seq.layout.sample.bincount(minlength=len(samples)).tolist()))


@pytest.fixture
def prompt() -> list[Segment]:
    """Every kind of segment that can be past, and words behind them."""
    return [text(1, 2), view(2, 2), canvas(2, 1), text(3, 4, 5)]


def greedy(network: UniMedVL, cache: KVCache, first: int, steps: int) -> tuple[list[list[int]], Tensor]:
    """Ids fed (steps, samples) and logits (steps, samples, V) of decoding the most likely words."""
    ids, fed, logits = torch.full((len(cache.lengths),), first), [], []
    for _ in range(steps):
        fed.append(ids.tolist())
        states = network(step(ids, range(len(ids)), cache.positions), cache).hidden
        logits.append(network.logits(states))
        ids = logits[-1].argmax(-1)
    return fed, torch.stack(logits)


@torch.no_grad()
def test_golden_text_states_of_every_layer(gold: Golden) -> None:
    network, seq, states = gold.network, pack([[gold.text("text.ids")]], gold.marks), []
    gold.check("text.packed_ids", seq.text_ids)
    gold.check("text.position_ids", seq.layout.position)
    gold.check("text.embeds", network.embed(seq))
    hooks = [
        layer.register_forward_hook(lambda _, x, y: states.append(y)) for layer in network.decoder.layers
    ]
    hidden = network(seq).hidden
    for hook in hooks:
        hook.remove()
    gold.check("text.layer_outputs", torch.stack(states))
    gold.check("text.hidden", hidden)
    gold.check("text.prefill_logits", network.logits(hidden))


@torch.no_grad()
def test_golden_text_cache_and_greedy_words(gold: Golden) -> None:
    case, cache = gold.cases["text"], KVCache(gold.network.decoder, 1, capacity=4)
    gold.network(pack([[gold.text("text.ids")]], gold.marks), cache)
    n = case["kv_len_after_prefill"]
    assert (cache.lengths, cache.positions) == ([n], [case["rope_after_prefill"]])
    gold.check("text.k_cache0", cache.keys[0, 0, :, :n].transpose(0, 1))
    gold.check("text.v_cache0", cache.values[0, 0, :, :n].transpose(0, 1))
    fed, logits = greedy(gold.network, cache, gold.marks.text_start, case["steps"])
    assert [ids[0] for ids in fed] == gold["text.decode_ids"].tolist()
    gold.check("text.decode_logits", logits[:, 0])
    gold.check("text.decode_next_ids", logits[:, 0].argmax(-1))
    assert cache.lengths == [case["kv_len_after_decode"]]


@torch.no_grad()
def test_golden_batch_of_two_prompts(gold: Golden) -> None:
    network, prompts = gold.network, [[gold.text("batch.ids0")], [gold.text("batch.ids1")]]
    seq, cache = pack(prompts, gold.marks), KVCache(network.decoder, 2)
    hidden = network(seq, cache).hidden
    gold.check("batch.last_logits", network.logits(hidden[list(seq.last_at)]))
    for s, segments in enumerate(prompts):  # the cache of a batch is that of each alone
        alone = KVCache(network.decoder, 1)
        network(pack([segments], gold.marks), alone)
        n = alone.lengths[0]
        assert cache.lengths[s] == n and cache.positions[s] == alone.positions[0]
        for ours, theirs in ((cache.keys, alone.keys), (cache.values, alone.values)):
            assert_close(ours[:, s, :, :n], theirs[:, 0, :, :n], atol=gold.tolerance, rtol=0)
    wanted = gold["batch.decode_ids"]
    fed, logits = greedy(network, cache, gold.marks.text_start, len(wanted))
    assert fed == wanted.tolist()
    gold.check("batch.decode_logits", logits)


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
def test_the_decoder_is_its_slow_twin(heads: tuple[int, int]) -> None:
    network = tiny_network(decoder={"num_heads": heads[0], "num_kv_heads": heads[1]})
    samples = [
        [text(1), canvas(1, 2), view(1, 2), text(2), canvas(1, 2, noisy=True), text(3)],
        [text(4, 5)],
        [canvas(1, 1, noisy=True)],
        [text(6, 7)],
    ]
    seq = pack(samples, MARKS)
    experts = ["generation" if i in seq.latent_at else "understanding" for i in range(len(seq))]
    slow = reference.decoder(network.decoder, network.embed(seq), seq.layout, experts)
    assert_close(network(seq).hidden, slow, atol=1e-6, rtol=0)  # rotary angles are float32 in one of them
    assert slow.std() > 0.1


def test_samples_packed_together_equal_each_alone(tiny: UniMedVL, prompt: list[Segment]) -> None:
    other: list[Segment] = [text(7), canvas(2, 2, noisy=True), text(8, 9)]
    samples = [prompt, other, [text(1)], other[::-1], [view(2, 2, seed=9)], prompt[::-1], [], [text(2)]]
    for together, segments in zip(in_order(tiny, samples), samples, strict=True):
        close(together, in_order(tiny, [segments])[0])


def test_changing_the_noise_changes_no_other_token(tiny: UniMedVL) -> None:
    def states(seed: int) -> tuple[Tensor, Tensor]:
        noisy = canvas(2, 2, seed=seed, noisy=True, time=0.5)
        seq = pack([[text(1), noisy, text(2), canvas(1, 1), view(1, 1), text(3)], [text(4)]], MARKS)
        return tiny(seq).hidden, seq.layout.noisy

    (before, noisy), (after, _) = states(1), states(2)
    close(before[~noisy], after[~noisy])
    assert (before[noisy] - after[noisy]).abs().amax(-1).min() > 1e-3


def test_changing_a_clean_canvas_changes_what_comes_later(tiny: UniMedVL) -> None:
    (before,), (after,) = (in_order(tiny, [[text(1), canvas(2, 2, seed=s), text(2)]]) for s in (1, 2))
    close(before[:3], after[:3])
    assert (before[3:] - after[3:]).abs().amax(-1).min() > 1e-4


def test_words_one_by_one_equal_words_at_once(tiny: UniMedVL, prompt: list[Segment]) -> None:
    cache = KVCache(tiny.decoder, 1, capacity=2)
    tiny(pack([prompt], MARKS), cache)
    ids = torch.tensor([MARKS.text_start, 6, 7, MARKS.text_end])
    states = [tiny(step(i[None], [0], cache.positions), cache).hidden[0] for i in ids]
    wanted = in_order(tiny, [[*prompt, text(6, 7)]])[0]
    close(torch.stack(states), wanted[-4:])
    assert cache.lengths == [len(wanted)]


@pytest.mark.parametrize("one_by_one", [("cpu",), ()], ids=["one by one", "masked"])
def test_samples_of_different_length_decode_together_as_apart(
    tiny: UniMedVL, prompt: list[Segment], one_by_one: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_unimedvl.networks.cache.ONE_BY_ONE", one_by_one)
    prompts = [prompt, [text(9)], [view(1, 3), text(2)]]
    cache = KVCache(tiny.decoder, 3, capacity=2)
    tiny(pack(prompts, MARKS), cache)
    _, together = greedy(tiny, cache, MARKS.text_start, 4)
    for s, segments in enumerate(prompts):
        alone = KVCache(tiny.decoder, 1)
        tiny(pack([segments], MARKS), alone)
        close(together[:, s], greedy(tiny, alone, MARKS.text_start, 4)[1][:, 0])


@pytest.mark.parametrize("one_by_one", [("cpu",), ()], ids=["one by one", "masked"])
def test_some_samples_of_a_cache_decode_while_the_others_rest(
    tiny: UniMedVL, prompt: list[Segment], one_by_one: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_unimedvl.networks.cache.ONE_BY_ONE", one_by_one)
    cache = KVCache(tiny.decoder, 3)
    tiny(pack([[text(1)], prompt, [text(2, 3)]], MARKS), cache)
    resting, ids = cache.keys[:, 1].clone(), torch.tensor([5, 6])
    positions = [cache.positions[2], cache.positions[0]]
    both = tiny(step(ids, [2, 0], positions), cache, keep=False).hidden
    for i, s in enumerate((2, 0)):
        close(both[i], tiny(step(ids[i : i + 1], [s], [cache.positions[s]]), cache, keep=False).hidden[0])
    close(cache.keys[:, 1], resting)
    assert cache.lengths == [3, 19, 4]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_reading_in_two_steps_equals_reading_at_once(tiny: UniMedVL, prompt: list[Segment], cut: int) -> None:
    once, twice = KVCache(tiny.decoder, 2), KVCache(tiny.decoder, 2, capacity=3)
    other: list[Segment] = [text(9), text(8, 7), view(1, 1), text(6)]
    whole = pack([prompt, other], MARKS)
    states = tiny(whole, once).hidden[list(whole.last_at)]
    tiny(pack([prompt[:cut], other[:cut]], MARKS), twice)
    rest = pack([prompt[cut:], other[cut:]], MARKS, start=twice.positions)
    close(tiny(rest, twice).hidden[list(rest.last_at)], states)
    assert once.lengths == twice.lengths and once.positions == twice.positions
    for s, n in enumerate(once.lengths):
        close(once.keys[:, s, :, :n], twice.keys[:, s, :, :n])
        close(once.values[:, s, :, :n], twice.values[:, s, :, :n])


def test_a_canvas_reads_the_cache_and_leaves_it_as_it_was(tiny: UniMedVL, prompt: list[Segment]) -> None:
    cache, drawn = KVCache(tiny.decoder, 1), canvas(2, 2, noisy=True, time=0.5)
    tiny(pack([prompt], MARKS), cache)
    n, keys = cache.lengths[0], cache.keys.clone()
    seq = pack([[drawn]], MARKS, start=cache.positions)
    states = tiny(seq, cache, keep=False).hidden[reading(seq)]
    close(states, in_order(tiny, [[*prompt, drawn]])[0][n:])
    assert cache.lengths == [n]
    close(cache.keys[:, :, :, :n], keys[:, :, :, :n])


def test_a_noisy_canvas_is_never_kept(tiny: UniMedVL) -> None:
    cache = KVCache(tiny.decoder, 1)
    with pytest.raises(ValueError, match="noisy canvas cannot be kept in the cache.*keep=False"):
        tiny(pack([[text(1), canvas(1, 1, noisy=True)]], MARKS), cache)
    assert cache.lengths == [0]


def test_a_fork_goes_its_own_way(tiny: UniMedVL, prompt: list[Segment]) -> None:
    cache = KVCache(tiny.decoder, 2)
    tiny(pack([[text(1)], prompt], MARKS), cache)
    fork = cache.fork([1, 0, 1])
    assert fork.lengths == [19, 3, 19] and fork.positions == [cache.positions[s] for s in (1, 0, 1)]
    keys = cache.keys.clone()
    tiny(pack([[text(2)], [text(3)], [text(4)]], MARKS, start=fork.positions), fork)
    assert torch.equal(cache.keys, keys) and cache.lengths == [3, 19] and fork.lengths == [22, 6, 22]
    apart = KVCache(tiny.decoder, 3)
    tiny(pack([[*prompt, text(2)], [text(1), text(3)], [*prompt, text(4)]], MARKS), apart)
    assert fork.positions == apart.positions
    for s, n in enumerate(apart.lengths):
        close(fork.keys[:, s, :, :n], apart.keys[:, s, :, :n])
        close(fork.values[:, s, :, :n], apart.values[:, s, :, :n])


def test_a_cache_carries_no_gradient(tiny: UniMedVL) -> None:
    cache = KVCache(tiny.decoder, 1, capacity=4)
    first, second = (tiny(pack([[text(n)]], MARKS, start=[3 * n]), cache).hidden for n in (0, 1))
    assert not first.requires_grad and not second.requires_grad and not cache.keys.requires_grad
    assert tiny(pack([[text(1)]], MARKS)).hidden.requires_grad


def test_reserving_room_keeps_what_is_cached(tiny: UniMedVL, prompt: list[Segment]) -> None:
    cache = KVCache(tiny.decoder, 1, capacity=20)
    tiny(pack([prompt], MARKS), cache)
    keys = cache.keys.clone()
    cache.reserve(20)
    assert cache.capacity == 20
    cache.reserve(21)
    assert cache.capacity == 40  # doubles
    cache.reserve(100)
    assert cache.capacity == 100 and cache.values.shape == cache.keys.shape
    close(cache.keys[:, :, :, :20], keys)
    assert cache.keys[:, :, :, 20:].abs().max() == 0


def test_the_layout_of_a_cache_is_ordinary_past(tiny: UniMedVL) -> None:
    cache = KVCache(tiny.decoder, 2)
    tiny(pack([[text(1)], [view(1, 1)]], MARKS), cache)
    layout = cache.layout()
    assert layout.sample.tolist() == [0] * 3 + [1] * 3
    assert set(layout.order.tolist()) == {-1} and set(layout.span.tolist()) == {-1}
    assert not layout.noisy.any()


def test_a_prompt_beyond_the_context_gets_one_line() -> None:
    network = tiny_network(decoder={"max_context": 6})
    cache = KVCache(network.decoder, 2)
    network(pack([[text(1, 2, 3)], [text(1)]], MARKS), cache)
    with pytest.raises(ValueError, match="hold 8 tokens, expected at most 6 .* shorten the text"):
        network(pack([[text(4)], []], MARKS, start=cache.positions), cache)
    assert cache.lengths == [5, 3]
    network(step(torch.tensor([5]), [0], cache.positions[:1]), cache)


def test_a_tied_head_is_the_embedding() -> None:
    network = tiny_network(decoder={"tied": True})
    assert not any("head" in name for name in network.state_dict())
    x = torch.randn(2, 16, dtype=torch.float64)
    close(network.logits(x), x @ network.decoder.embed.weight.T)


def test_sizes_that_do_not_divide_get_one_line() -> None:
    with pytest.raises(
        ValueError, match="hidden_size=10, num_heads=4, num_kv_heads=2, expected each to divide"
    ):
        Decoder(8, 10, 8, 1, 4, 2)
    with pytest.raises(ValueError, match="num_kv_heads=3"):
        Decoder(8, 16, 8, 1, 4, 3)
