# SPDX-License-Identifier: Apache-2.0
"""Tokens that repeat the neighbouring slice are dropped: as many as promised, and those that say least."""

from __future__ import annotations

import pytest
import torch
from tiny import MARKS, numbers, text, tiny_network, view
from torch.testing import assert_close

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, View, pack
from monai_unimedvl.transforms.pruning import PruneTokens, share_dropped
from monai_unimedvl.transforms.segments import ToSegments


def slices(count: int = 4, places: int = 16, step: float = 0.1) -> torch.Tensor:
    """(count, places, 12): place k changes by k * step / places from slice to slice."""
    change = torch.linspace(0, step, places).view(1, -1, 1) * torch.arange(count).view(-1, 1, 1)
    return (torch.zeros(count, places, 12) + change).clamp(-1, 1)


def test_the_budget_is_met_and_the_first_slice_is_whole() -> None:
    for budget in (0.2, 0.55, 0.7):
        keep = PruneTokens(budget).kept(torch.rand(8, 49, 12) * 2 - 1)
        assert bool(keep[0].all())
        assert budget <= 1 - float(keep.float().mean()) <= budget + 0.02


def test_what_differs_most_is_kept() -> None:
    keep = PruneTokens(0.5).kept(slices())
    assert (
        keep[1:, -4:].any(1).all() and not keep[1:, :4].any()
    )  # the last places change most, the first least
    still = PruneTokens(None, threshold=0.02).kept(torch.zeros(5, 9, 12))
    assert int(still.sum()) == 9


def test_slow_change_adds_up_until_it_is_seen() -> None:
    keep = PruneTokens(None, threshold=0.05).kept(slices(count=6, places=2, step=0.06))
    assert keep[:, 1].tolist() == [True, False, True, False, True, False]  # 0.03 a slice, of the range of 2
    assert keep[:, 0].tolist() == [True, *[False] * 5]


def test_a_budget_that_slices_cannot_give_takes_what_they_can() -> None:
    keep = PruneTokens(0.9).kept(torch.rand(2, 16, 12))
    assert int(keep.sum()) == 16 and bool(keep[0].all())


def test_runs_are_slices_of_one_size_with_words_between_and_single_images_stay() -> None:
    same = view(2, 2)
    run = [text(1), same, text(2), same, same]
    pruned = PruneTokens(0.5)([*run, view(3, 2), text(3)])
    kept = [segment.tokens for segment in pruned if isinstance(segment, View)]
    assert kept == [4, 0, 0, 6] and share_dropped(pruned) == pytest.approx(8 / 18)
    assert pruned[0] is run[0] and pruned[1] is same
    alone = [text(1), same, text(2)]
    assert PruneTokens(0.5)(alone) == alone
    parted = [same, Canvas((1, 1), numbers(1, 12)), same]
    assert PruneTokens(0.5)(parted) == parted


@pytest.mark.parametrize("words", [{"budget": 1.0}, {"budget": None}, {"threshold": -0.1}])
def test_settings_that_mean_nothing_are_refused(words: dict) -> None:
    with pytest.raises(ValueError, match=r"PruneTokens got"):
        PruneTokens(**words)


def test_keeping_every_patch_is_keeping_all(tiny: UniMedVL) -> None:
    plain = [[text(1), view(2, 2), view(2, 3), text(2, 3)], [view(2, 2)]]
    named = [[text(1), view(2, 2, kept=torch.arange(4)), view(2, 3), text(2, 3)], [view(2, 2)]]
    a, b = (tiny(pack(samples, MARKS)).hidden for samples in (plain, named))
    assert_close(a, b, atol=1e-12, rtol=0)


def test_a_dropped_token_is_as_if_nobody_saw_it(tiny: UniMedVL) -> None:
    """The states of what is kept are those of attention from which the dropped are hidden."""
    kept = torch.tensor([0, 3])
    short = pack([[view(2, 2, kept=kept), text(4, 5)]], MARKS)
    whole = pack([[view(2, 2), text(4, 5)]], MARKS)
    assert len(whole) - len(short) == 2 and short.view_kept is not None
    seen = tiny.views(whole)
    assert_close(tiny.views(short), seen[kept], atol=1e-12, rtol=0)  # the encoder looked at all of it
    assert short.layout.position.max() == whole.layout.position.max()  # an image is one position
    order = [0, 1, 4, *range(5, len(whole))]  # marks and kept patches of the whole one
    x = tiny.embed(whole)[order]
    assert_close(tiny.embed(short), x, atol=1e-12, rtol=0)


def test_packs_of_pruned_and_whole_samples_are_each_as_alone(tiny: UniMedVL) -> None:
    samples = [[view(2, 2, kept=torch.tensor([1])), text(4)], [view(2, 2, seed=3), text(4)], [text(1, 2)]]
    together = pack(samples, MARKS)
    states = tiny(together).hidden
    for n, sample in enumerate(samples):
        alone = tiny(pack([sample], MARKS)).hidden
        assert_close(states[together.layout.sample == n], alone, atol=1e-12, rtol=0)


def test_a_view_that_keeps_what_it_has_not_is_refused() -> None:
    for wrong in ([4], [1, 0], [-1]):
        with pytest.raises(
            ValueError, match=r"pack got a View that keeps .* of 4 patches, expected ascending"
        ):
            pack([[view(2, 2, kept=torch.tensor(wrong))]], MARKS)


def test_prompts_are_pruned_where_nothing_is_drawn() -> None:
    class Words:
        def encode(self, words: str) -> torch.Tensor:
            return torch.zeros(len(words), dtype=torch.long)

    from monai_unimedvl.transforms.image import Rule

    rule = Rule(8, 8, 2)
    to_segments = ToSegments(Words(), view=rule, canvas=rule, prune=PruneTokens(0.5), max_tokens=60)
    pictures = [torch.full((3, 8, 8), 0.2) for _ in range(4)]
    found = to_segments([*pictures, "what?"])
    assert share_dropped(found) == 0.75  # more than promised: they are all the same
    drawn = to_segments([pictures[0], "draw"], draw=True)
    assert share_dropped(drawn) == 0
    with pytest.raises(ValueError, match=r"the prompt needs 79 tokens"):
        ToSegments(Words(), view=rule, canvas=rule, max_tokens=60)([*pictures, "what?"])


def test_reading_pruned_slices_with_a_shared_beginning_equals_reading_alone() -> None:
    from monai_unimedvl.inferers import TextInferer
    from monai_unimedvl.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["an axial slice"] * 3, 270)
    network = tiny_network(decoder={"vocab_size": len(tokenizer), "max_context": 128})
    pictures = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    pictures[1] = pictures[0]
    batch = [[*pictures, "axial?"], [*pictures, "slice?"], [*pictures[:2], "axial?"]]
    infer = TextInferer(tokenizer, max_new_tokens=3, prune=PruneTokens(0.3))
    together = infer(batch, network)
    assert [a.ids for a in together] == [infer([prompt], network)[0].ids for prompt in batch]
