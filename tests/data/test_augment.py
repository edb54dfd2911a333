# SPDX-License-Identifier: Apache-2.0
"""Laws of augmentation: words stay true, masks keep their colours, what belongs together moves together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.data.atlas_tasks import LEGENDS, TASKS
from monai_unimedvl.data.augment import CHANGES, abridged, augment, recolour
from monai_unimedvl.sequence import Turn

LESSONS = {"seg-any", "seg-parcels"}  # label maps that an encoder is taught (training/test_vision.py)
DRAWN = sorted(set(CHANGES) - {"vqa", "caption", "text-to-image"} - LESSONS)


def picture(seed: int = 0) -> Tensor:
    """Smooth shapes (3, 64, 64) in [0, 1], without any symmetry."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0.1, 0.9)[0]


def dialogue(given: Tensor, drawn: Tensor | None = None) -> list[Turn]:
    return [Turn("user", [given, "Which?"]), Turn("assistant", ["That." if drawn is None else drawn])]


def images(turns: list[Turn]) -> list[Tensor]:
    return [part for turn in turns for part in turn.parts if isinstance(part, Tensor)]


def changed(task: str, seed: int, *given: Tensor) -> list[Tensor]:
    return images(augment(dialogue(*given), torch.Generator().manual_seed(seed), task=task))


def test_every_task_that_may_change_is_a_task() -> None:
    assert set(CHANGES) - LESSONS <= set(TASKS)


@pytest.mark.parametrize("task", sorted(CHANGES))
def test_the_same_generator_gives_the_same_change_and_another_one_another(task: str) -> None:
    first, again = (changed(task, 3, picture(), picture(1)) for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert any(not torch.equal(first[0], changed(task, seed, picture(), picture(1))[0]) for seed in range(8))


@pytest.mark.parametrize("task", sorted(CHANGES))
def test_words_and_roles_and_originals_stay_and_images_stay_in_range(task: str) -> None:
    before = dialogue(picture(), picture(1))
    kept = [image.clone() for image in images(before)]
    after = augment(before, torch.Generator().manual_seed(1), task=task)
    assert [turn.role for turn in after] == ["user", "assistant"] and after[0].parts[1] == "Which?"
    assert all(map(torch.equal, images(before), kept))
    for image in images(after):
        assert image.shape == (3, 64, 64) and image.is_contiguous() and 0 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize("task", sorted(LEGENDS))
def test_masks_keep_exactly_their_colours(task: str) -> None:
    legend = torch.tensor([(0, 0, 0), *LEGENDS[task].values()]) / 255  # (K, 3)
    labels = (picture()[0] * 997).long() % len(legend)
    allowed = set(map(tuple, legend.tolist()))
    moved = 0
    for seed in range(6):
        _, mask = changed(task, seed, picture(), legend[labels].movedim(-1, 0))
        assert set(map(tuple, mask.flatten(1).T.tolist())) <= allowed
        moved += not torch.equal(mask, legend[labels].movedim(-1, 0))
    assert moved > 2


@pytest.mark.parametrize("task", DRAWN)
def test_condition_and_target_move_alike(task: str) -> None:
    """Colours may differ after gamma, gain and nearest neighbours: where the disc is may not."""
    across, down = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy")
    disc = ((across - 20).square() + (down - 25).square() < 64).float().expand(3, 64, 64)
    seen = []
    for seed in range(12):
        condition, target = changed(task, seed, disc, disc)
        centres = [
            torch.stack([(x[0] * axis).sum() / x[0].sum() for axis in (across, down)])
            for x in (condition, target)
        ]
        assert_close(centres[0], centres[1], atol=0.25, rtol=0)
        seen.append(centres[0])
    spread = torch.stack(seen).std(0)
    assert spread.max() > 1, "nothing moved, so nothing is shown"


@pytest.mark.parametrize("task", ["vqa", "caption", "text-to-image"])
def test_left_stays_left_and_up_stays_up_where_words_may_say_so(task: str) -> None:
    corner = torch.zeros(3, 64, 64)
    corner[:, 6:16, 6:16] = 0.8
    for seed in range(60):
        for image in changed(task, seed, corner, corner):
            bright = (image > 0.3).float()  # not the noise
            assert bright[:, :32, :32].sum() > 0.9 * bright.sum() > 0


@pytest.mark.parametrize("task", [t for t in DRAWN if CHANGES[t].mirror])
def test_mirroring_happens_where_it_is_allowed(task: str) -> None:
    corner = torch.zeros(3, 64, 64)
    corner[:, 24:40, 4:20] = 0.8
    sides = {bool(changed(task, seed, corner, corner)[1][..., 32:].sum() > 1) for seed in range(20)}
    assert sides == {True, False}


def test_a_task_without_an_entry_is_left_alone() -> None:
    before = dialogue(picture(), picture(1))
    assert augment(before, torch.Generator().manual_seed(0), task="slice-group") == before


def test_what_the_user_gives_is_spoilt_and_what_is_drawn_is_not() -> None:
    flat = torch.full((3, 64, 64), 0.5)
    given, drawn = changed("vqa", 3, flat, flat)
    inside = given[:, 24:40, 24:40]  # no border comes in here
    assert torch.equal(inside[0], inside[1]) and inside.std() > 0.001
    assert drawn[:, 24:40, 24:40].std() < 1e-5
    blacks = [bool((changed("vqa", seed, flat, flat)[0][0, 20:44, 20:44] == 0).any()) for seed in range(60)]
    assert any(blacks) and not all(blacks)


def test_recolouring_keeps_what_is_alike_alike_and_black_dark() -> None:
    grey = (picture()[:1] * 9).round().div(9).expand(3, 64, 64)
    seen = [recolour(grey, torch.Generator().manual_seed(seed)) for seed in range(4)]
    for strange in seen:
        assert torch.equal(strange[0], strange[2]) and 0 <= strange.min() <= strange.max() <= 1
        for level in grey.unique():
            assert len(strange[grey == level].unique()) == 1
        assert (recolour(torch.zeros(3, 2, 2), torch.Generator().manual_seed(1)) < 0.02).all()
    order = [torch.corrcoef(torch.stack([grey[0].flatten(), x[0].flatten()]))[0, 1] for x in seen]
    assert min(order) < 0.9, "a contrast like the old one is not another contrast"


def test_words_that_tell_left_from_right_keep_pictures_as_they_are() -> None:
    pair = picture(), picture(1)
    mirrored = []
    for seed in range(8):
        kept = augment(dialogue(*pair), torch.Generator().manual_seed(seed), task="sr4", mirror=False)
        assert (images(kept)[0] / pair[0]).std() < 1e-5  # brighter or darker, but in place
        mirrored.append(not torch.equal(images(kept)[0], changed("sr4", seed, *pair)[0]))
    assert any(mirrored) and not all(mirrored)


SLICE = "Coronal T2 MRI at the level of the thalamus, smooth average. Visible: insula, temporal lobe."


def short(words: str, elsewhere: tuple[str, ...] = (), count: int = 200) -> set[str]:
    return {abridged(words, torch.Generator().manual_seed(seed), elsewhere) for seed in range(count)}


def test_a_description_is_abridged_to_what_a_user_would_type() -> None:
    found = short(SLICE)
    assert {"Coronal T2 MRI", "Coronal T2 MRI.", "Coronal T2 MRI at the level of the thalamus"} <= found
    assert all(words.startswith("Coronal T2 MRI") and "Visible" not in words for words in found)
    assert short("Axial CT of the chest. No tumour.") == {
        "Axial CT of the chest. No tumour.", "Axial CT of the chest.", "Axial CT of the chest",
    }  # fmt: skip


def test_a_level_of_another_plane_takes_the_place_of_the_true_one_in_a_share() -> None:
    found = [abridged(SLICE, torch.Generator().manual_seed(seed), ("the pons",)) for seed in range(600)]
    elsewhere = [words for words in found if "the pons" in words]
    assert 0.35 < len(elsewhere) / len(found) < 0.55 and not any("thalamus" in w for w in elsewhere)
    assert any("Visible: insula" in words for words in elsewhere)
    assert not any("the pons" in words for words in short(SLICE))
