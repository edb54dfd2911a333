# SPDX-License-Identifier: Apache-2.0
"""Packing and the one rule of attention: golden masks, positions and indices, then laws."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from golden_support import Golden, reading, rows
from reference import may_see
from tiny import MARKS, canvas, text, view
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.sequence import (
    CAUSAL,
    Block,
    Canvas,
    Layout,
    PackedSequence,
    Segment,
    Text,
    Turn,
    View,
    pack,
    step,
    visible,
)

DROPPED = {"text_drop": "text", "vit_drop": "vit_image", "vae_drop": "vae_image"}


def layout_of_splits(samples: list[tuple[list[int], list[str]]]) -> Layout:
    """The layout of samples given as lengths and modes of their splits (causal, full, noise)."""
    table, span = [], 0
    for s, (lengths, modes) in enumerate(samples):
        order = 0
        for n, mode in zip(lengths, modes, strict=True):
            here = CAUSAL if mode == "causal" else span
            table += [(s, order + i, 0, here, mode == "noise") for i in range(n)]
            order, span = order + n, span + 1
    sample, order, position, span, noisy = torch.tensor(table).unbind(1)
    return Layout(sample, order, position, span, noisy.bool())


def segment_of(length: int, mode: str) -> Segment:
    """A segment that leaves `length` tokens."""
    if mode == "causal":
        return Text(torch.zeros(length - 2, dtype=torch.long))
    grid, tokens = (1, length - 2), torch.zeros(length - 2, 1)
    return View(tokens, grid) if mode == "full" else Canvas(grid, tokens, noisy=True)


def mask_of_blocks(seq: PackedSequence) -> Tensor:
    """(L, L) of what the blocks of a plan mean, in the order of `reading`."""
    masks: dict[int, Tensor] = {}
    for block in seq.plan.blocks:
        mask = torch.ones(block.length, block.length, dtype=torch.bool)
        if isinstance(block.mask, Tensor):
            mask = block.mask
        elif block.mask is not None:
            assert block.mask == "causal"
            mask = mask.tril()
        masks |= dict.fromkeys(block.samples, mask)
    return torch.block_diag(*(masks[s] for s in sorted(masks)))


def mask_of_parts(block: Block) -> Tensor:
    """(length, length) of what the parts of a block mean."""
    table = torch.zeros(block.length, block.length, dtype=torch.bool)
    ends = list(accumulate(part.length for part in block.parts))
    for i, part in enumerate(block.parts):
        rows = range(ends[i] - part.length, ends[i])
        seen = [n for j in (*part.sees, i) for n in range(ends[j] - block.parts[j].length, ends[j])]
        mask = torch.ones(part.length, len(seen), dtype=torch.bool)
        if part.mask is not None:
            mask = mask.tril() if isinstance(part.mask, str) else part.mask
        table[torch.tensor(rows).unsqueeze(-1), torch.tensor(seen)] = mask
    return table


def mask_of_layout(layout: Layout) -> Tensor:
    """(L, L) by the rule."""
    return visible(layout.query(), layout)


def masks(gold: Golden) -> list[tuple[str, list[tuple[list[int], list[str]]]]]:
    """Name of each golden mask and the splits of its samples."""
    return [
        (case["mask"], [(sample["split_lens"], sample["attn_modes"]) for sample in case["samples"]])
        for case in gold.cases["masks"]["cases"]
    ]


def splits_of(case: dict[str, Any]) -> list[tuple[list[int], list[str]]]:
    """Lengths and modes of the splits of each sample, from flat lists."""
    splits = list(zip(case["split_lens"], case["attn_modes"], strict=True))
    samples = []
    for length in case["sample_lens"]:
        mine = []
        while sum(n for n, _ in mine) < length:
            mine.append(splits.pop(0))
        samples.append(tuple(map(list, zip(*mine, strict=True))))
    return samples


def test_joined_canvases_are_one_noisy_image_at_positions_of_their_own() -> None:
    sample = [text(1, 2), canvas(2, 2), canvas(2, 2, noisy=True), canvas(2, 2, noisy=True, joined=True)]
    seq = pack([[*sample, text(3)], [*sample[:3], text(4)]], MARKS)
    layout = seq.layout
    table = mask_of_layout(layout)
    place = {(int(s), int(o)): i for i, (s, o) in enumerate(zip(layout.sample, layout.order, strict=True))}
    first, second, last = place[0, 10], place[0, 16], place[0, 22]
    assert table[first, second] and table[second, first], "neighbours see each other"
    assert table[second, place[0, 4]] and not table[last, second], "both see the past, nobody sees them"
    assert not table[first, place[1, 10]], "samples stay apart"
    positions = [int(layout.position[i]) for i in (place[0, 4], first, second, last)]
    assert positions == [4, 5, 6, 5], "a group takes no position"
    alone = pack([[canvas(2, 2, noisy=True), canvas(2, 2, noisy=True, joined=True)]], MARKS)
    (block,) = alone.plan.blocks
    assert block.mask is None and not block.parts and block.length == 12
    order = seq.plan.arrival if seq.plan.arrival is not None else torch.arange(len(seq))
    for block in seq.plan.blocks:
        (s,) = block.samples
        mine = order[layout.sample[order] == s]
        assert torch.equal(block.mask, table[mine][:, mine])
        assert torch.equal(mask_of_parts(block), table[mine][:, mine])


def test_a_joined_canvas_needs_a_neighbour() -> None:
    with pytest.raises(ValueError, match="joined Canvas after no noisy one"):
        pack([[canvas(2, 2, noisy=True)], [canvas(2, 2, noisy=True, joined=True)]], MARKS)
    with pytest.raises(ValueError, match="joined=True with noisy=False"):
        canvas(2, 2, joined=True)


def test_golden_masks_follow_from_the_rule(gold: Golden) -> None:
    for name, samples in masks(gold):
        gold.check(name, mask_of_layout(layout_of_splits(samples)))


def test_golden_masks_are_what_the_blocks_of_a_pack_mean(gold: Golden) -> None:
    for name, samples in masks(gold):
        seq = pack([[segment_of(*split) for split in zip(*sample, strict=True)] for sample in samples], MARKS)
        gold.check(name, mask_of_blocks(seq).bool())
        order = reading(seq)
        gold.check(name, mask_of_layout(seq.layout)[order][:, order])


def test_golden_train_batch_is_packed_at_the_same_places(gold: Golden) -> None:
    seq = pack(gold.train_samples(), gold.marks)
    gold.check("train.packed_text_ids", seq.text_ids)
    gold.check("train.packed_text_indexes", rows(seq, seq.text_at))
    gold.check("train.packed_vit_token_indexes", rows(seq, seq.view_at))
    gold.check("train.packed_vae_token_indexes", rows(seq, seq.latent_at))
    gold.check("train.mse_loss_indexes", rows(seq, seq.latent_at[seq.noisy]))
    gold.check("train.packed_position_ids", seq.layout.position[reading(seq)])
    gold.check("train.packed_vit_tokens", seq.patches)
    gold.check("train.attention_mask", mask_of_blocks(seq).bool())
    lengths = seq.layout.sample.bincount().tolist()
    assert lengths == gold.cases["train"]["sample_lens"]


def test_golden_train_batch_has_the_same_labels_and_cells(gold: Golden) -> None:
    seq = pack(gold.train_samples(), gold.marks)
    gold.check("train.packed_label_ids", seq.labels)
    gold.check("train.ce_loss_indexes", rows(seq, seq.label_at))
    gold.check("train.ce_loss_weights", seq.label_weights, tolerance=1e-7)
    view_side, latent_side = gold.model["vit_max_num_patch_per_side"], gold.model["max_latent_size"]
    gold.check("train.packed_vit_position_ids", seq.view_cells @ torch.tensor([view_side, 1]))
    gold.check("train.packed_latent_position_ids", seq.latent_cells @ torch.tensor([latent_side, 1]))


def test_golden_packing_of_dropped_conditions(gold: Golden) -> None:
    for case in gold.cases["packing"]:
        dropped = tuple(kind for field, kind in DROPPED.items() if case[field] == 1.0)
        assert dropped
        seq = pack(gold.train_samples(dropped), gold.marks)
        assert seq.layout.sample.bincount().tolist() == case["sample_lens"]
        assert seq.layout.position[reading(seq)].tolist() == case["packed_position_ids"]
        assert seq.text_ids.tolist() == case["packed_text_ids"]
        assert rows(seq, seq.text_at).tolist() == case["packed_text_indexes"]
        assert rows(seq, seq.label_at).tolist() == case["ce_loss_indexes"]
        assert seq.labels.tolist() == case["packed_label_ids"]
        assert rows(seq, seq.latent_at[seq.noisy]).tolist() == case["mse_loss_indexes"]
        assert torch.equal(mask_of_blocks(seq).bool(), mask_of_layout(layout_of_splits(splits_of(case))))


@pytest.fixture
def samples() -> list[list[Segment]]:
    """Every kind of segment, two samples of one shape apart from each other, and one without tokens."""
    return [
        [
            view(2, 3),
            text(1, 2, loss=True),
            canvas(2, 2),
            text(3),
            canvas(1, 3, noisy=True),
            text(4, loss=True),
        ],
        [text(5, 6)],
        [],
        [canvas(2, 2, noisy=True)],
        [text(7), view(1, 1), text(8, dropped=True), view(2, 1, dropped=True), text(9, 10, 11, loss=True)],
        [text(12, 13)],
    ]


def test_the_rule_says_the_same_as_its_slow_twin(samples: list[list[Segment]]) -> None:
    layout = pack(samples, MARKS).layout
    length = range(len(layout.sample))
    slow = torch.tensor([[may_see(layout, i, j) for j in length] for i in length])
    assert torch.equal(mask_of_layout(layout), slow)


def test_blocks_say_the_same_as_the_rule(samples: list[list[Segment]]) -> None:
    seq = pack(samples, MARKS)
    order = reading(seq)
    assert torch.equal(mask_of_blocks(seq).bool(), mask_of_layout(seq.layout)[order][:, order])


def test_the_parts_of_a_block_say_the_same_as_its_mask(samples: list[list[Segment]]) -> None:
    between = [segment_of(n, kind) for n, kind in ((4, "noise"), (3, "causal"), (5, "full"), (4, "noise"))]
    blocks = [*pack(samples, MARKS).plan.blocks, *pack([between], MARKS).plan.blocks]
    parted = [block for block in blocks if block.parts]
    assert len(parted) == 3
    for block in parted:
        assert torch.equal(mask_of_parts(block), block.mask)


def test_words_side_by_side_are_one_part() -> None:
    words, image = segment_of(4, "causal"), segment_of(5, "full")
    (block,) = pack([[words, words, image, words, words]], MARKS).plan.blocks
    assert [(part.length, part.sees) for part in block.parts] == [(8, ()), (5, (0,)), (8, (0, 1))]


def test_arrival_leads_from_memory_to_the_blocks_and_home_leads_back(samples: list[list[Segment]]) -> None:
    plan = pack(samples, MARKS).plan
    wanted = [(s, i) for block in plan.blocks for s in block.samples for i in range(block.length)]
    found = torch.stack([plan.layout.sample, plan.layout.order], 1)[plan.arrival]
    assert found.tolist() == [list(pair) for pair in wanted]
    assert plan.arrival[plan.home].tolist() == list(range(len(wanted)))
    assert [b.samples for b in plan.blocks if len(b.samples) > 1] == [(1, 5)]


def test_generation_tokens_come_last_and_are_the_latents_only(samples: list[list[Segment]]) -> None:
    seq = pack(samples, MARKS)
    routes = seq.plan.routes
    assert (routes.understanding, routes.generation) == (len(seq) - 11, 11)
    assert sorted(seq.latent_at.tolist()) == list(range(routes.understanding, len(seq)))
    places = torch.cat([seq.text_at, seq.view_at, seq.latent_at])
    assert sorted(places.tolist()) == list(range(len(seq)))  # every token is one of the three


def test_a_noisy_canvas_is_seen_by_itself_only(samples: list[list[Segment]]) -> None:
    layout = pack(samples, MARKS).layout
    seen = mask_of_layout(layout)
    other = layout.span.unsqueeze(-1) != layout.span
    assert not (seen & layout.noisy & other).any()
    assert int(layout.noisy.sum()) == 11


def test_samples_packed_together_are_laid_out_as_alone(samples: list[list[Segment]]) -> None:
    together, order = pack(samples, MARKS), reading(pack(samples, MARKS))
    for s, segments in enumerate(samples):
        alone = pack([segments], MARKS)
        mine = order[together.layout.sample[order] == s]
        for name in ("order", "position", "noisy"):
            assert torch.equal(
                getattr(together.layout, name)[mine], getattr(alone.layout, name)[reading(alone)]
            )
        own = reading(alone)
        assert torch.equal(
            mask_of_layout(together.layout)[mine][:, mine], mask_of_layout(alone.layout)[own][:, own]
        )
        last = together.last_at[s]
        assert last == (int(mine[-1]) if len(mine) else -1)
        assert together.plan.next_position[s] == alone.plan.next_position[0]


def test_positions_go_on_where_the_past_ended_and_a_canvas_being_drawn_takes_none() -> None:
    segments = [[text(1), view(2, 2)], [canvas(1, 1, noisy=True)], [view(1, 1, dropped=True), text(2)]]
    seq = pack(segments, MARKS, start=[5, 9, 0])
    at = reading(seq)
    assert seq.layout.position[at].tolist() == [5, 6, 7, *[8] * 6, *[9] * 3, 1, 2, 3]
    assert seq.plan.next_position == {0: 9, 1: 9, 2: 4}


def test_labels_are_the_next_words_and_text_end() -> None:
    seq = pack([[text(1, 2), text(3, 4, 5, loss=True), text(loss=True)]], MARKS)
    assert seq.labels.tolist() == [3, 4, 5, MARKS.text_end, MARKS.text_end]
    assert seq.text_ids[seq.label_at].tolist() == [MARKS.text_start, 3, 4, 5, MARKS.text_start]
    assert_close(seq.label_weights, torch.tensor([0.5] * 4 + [1.0]))


def test_bases_lie_where_their_canvases_do_and_zeros_elsewhere() -> None:
    base = canvas(1, 2, seed=9).latents
    seq = pack([[canvas(1, 1), text(1), canvas(1, 2, noisy=True, base=base)], [canvas(1, 1)]], MARKS)
    assert seq.based.tolist() == [False, True, True, False]
    assert torch.equal(seq.bases[1:3], base) and not seq.bases[[0, 3]].any()
    plain = pack([[canvas(1, 1), canvas(1, 2, noisy=True)]], MARKS)
    assert plain.bases is None and plain.based.tolist() == [False] * 3


def test_where_drawings_lie_is_known_without_looking_at_a_value_again() -> None:
    wide, small = canvas(1, 2, seed=9).latents, canvas(1, 1).latents
    drawings = [
        canvas(1, 2, noisy=True, base=wide),
        canvas(2, 1, noisy=True),
        canvas(1, 1, noisy=True, base=small),
    ]
    seq = pack([[canvas(1, 1), *drawings], [canvas(1, 2, noisy=True, base=wide)]], MARKS)
    assert {grid: at.tolist() for grid, at in seq.edits.items()} == {(1, 2): [1, 2, 6, 7], (1, 1): [5]}
    assert {grid: at.tolist() for grid, at in seq.fresh.items()} == {(2, 1): [3, 4]}  # no clean one
    later = seq.to("meta").with_latents(seq.latents.to("meta"), seq.times.to("meta"))  # has no values
    assert {grid: at.shape for grid, at in later.edits.items()} == {(1, 2): (4,), (1, 1): (1,)}
    assert later.fresh[2, 1].shape == (2,)
    assert pack([[canvas(1, 2, noisy=True)]], MARKS).edits == {}


def test_a_pack_of_nothing_is_empty() -> None:
    for samples in ([], [[]], [[text(1, dropped=True)]]):
        seq = pack(samples, MARKS)
        assert len(seq) == 0 and seq.plan.blocks == () and seq.patches is None and seq.latents is None
        assert seq.last_at == (-1,) * len(samples)


def test_a_step_is_one_word_for_each_sample() -> None:
    seq = step(torch.tensor([4, 5]), [2, 0], [7, 3])
    assert seq.layout.sample.tolist() == [2, 0] and seq.layout.position.tolist() == [7, 3]
    assert seq.plan.next_position == {2: 8, 0: 4} and seq.last_at == (0, 1)
    assert seq.text_ids.tolist() == [4, 5] and seq.text_at.tolist() == [0, 1]
    assert [(b.samples, b.length) for b in seq.plan.blocks] == [((2, 0), 1)]
    assert seq.plan.routes[:2] == (2, 0) and len(seq.latent_at) == len(seq.labels) == 0


def test_a_pack_moves_and_detaches_as_a_whole(samples: list[list[Segment]]) -> None:
    seq = pack(samples, MARKS)
    moved = seq.to("meta")
    tensors = [x for x in vars(moved).values() if isinstance(x, Tensor)]
    tensors += [*moved.layout, moved.plan.arrival, moved.plan.home]
    every = [x for b in moved.plan.blocks for x in (b.mask, *(part.mask for part in b.parts))]
    tensors += [x for x in every if isinstance(x, Tensor)]
    assert len(tensors) > 20 and {x.device.type for x in tensors} == {"meta"}
    assert seq.detached().plan.routes.detach_understanding and not seq.plan.routes.detach_understanding


def test_images_that_cannot_be_packed_get_one_line() -> None:
    with pytest.raises(ValueError, match=r"Canvas without latents: encode the samples with UniMedVL\.encode"):
        pack([[Canvas((2, 2), image=torch.zeros(3, 4, 4))]], MARKS)
    with pytest.raises(ValueError, match="a View of 5 tokens, expected 2x3"):
        pack([[View(torch.zeros(5, 12), (2, 3))]], MARKS)
    with pytest.raises(ValueError, match=r"a base of shape \(2, 12\), expected \(4, 12\) like its latents"):
        pack([[canvas(2, 2, noisy=True, base=canvas(1, 2).latents)]], MARKS)
    with pytest.raises(ValueError, match="role 'system', expected 'user' or 'assistant'"):
        Turn("system", ["be kind"])
