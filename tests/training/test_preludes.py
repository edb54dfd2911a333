# SPDX-License-Identifier: Apache-2.0
"""What comes before an edit in a dialogue is about the same picture, and is read, not learnt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("nilearn", reason="the atlas corpus starts from nilearn's ICBM152 maps")
pytest.importorskip("skimage", reason="the atlas corpus needs scikit-image")

from monai_unimedvl.data.atlas import AtlasDataset  # noqa: E402
from monai_unimedvl.data.atlas_tasks import TASKS  # noqa: E402
from monai_unimedvl.sequence import Turn  # noqa: E402
from monai_unimedvl.training import presets  # noqa: E402
from monai_unimedvl.training.preludes import SAID, Preludes, history  # noqa: E402
from monai_unimedvl.training.presets import DRAWING, _levels_elsewhere, atlas_streams  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AtlasDataset:
    """Of the sources that every installation has."""
    return AtlasDataset(tmp_path_factory.mktemp("empty"), "train", tasks=TASKS, progress=False)


def dialogues(dataset: AtlasDataset, task: str, count: int = 80) -> list[tuple[int, list[Turn], bool]]:
    preludes = Preludes(dataset)
    places = [i for i, entry in enumerate(dataset.entries) if entry.task == task][:count]
    return [(i, *preludes.before(i, dataset[i]["turns"], torch.Generator().manual_seed(i))) for i in places]


def test_a_prelude_is_about_the_picture_of_the_edit_and_ends_in_it(dataset: AtlasDataset) -> None:
    true: dict[str, set[tuple[str, str]]] = {}
    for entry in dataset.entries:
        if entry.answer is not None:
            true.setdefault(entry.picture.id, set()).add(entry.answer)  # type: ignore[arg-type]
    lengths = set()
    for i, turns, _ in dialogues(dataset, "seg-tissue"):
        asked, drawn = (turn.parts for turn in dataset[i]["turns"])
        assert torch.equal(turns[0].parts[0], asked[0]) and torch.equal(turns[-1].parts[0], drawn[0])
        assert turns[-2].parts[-1] == asked[1]
        words = turns[0].parts[1:-1]
        answers = words[len(words) % 2 + 1 :: 2]  # after a history, if there is one
        assert set(answers) <= true[dataset.entries[i].picture.id] and len(answers) <= SAID
        lengths.add(len(words))
    assert {0, 1, 2 * SAID, 2 * SAID + 1} <= lengths


def test_an_earlier_drawing_is_another_edit_of_the_same_pixels(dataset: AtlasDataset) -> None:
    found = [(i, turns) for i, turns, before in dialogues(dataset, "seg-tissue") if before]
    assert found
    for i, turns in found:
        assert [turn.role for turn in turns] == ["user", "assistant"] * 2
        others = [e for e in dataset.entries if e.picture.id == dataset.entries[i].picture.id and e.targets]
        assert turns[0].parts[-1] in {entry.words for entry in others if entry.task != "seg-tissue"}
        assert isinstance(turns[1].parts[0], Tensor)
    blurred = [turns for _, turns, before in dialogues(dataset, "sr4") if before]
    assert not blurred  # no other edit is of a blurred picture


def test_only_a_leg_that_asks_for_them_has_preludes_and_short_words(dataset: AtlasDataset) -> None:
    def parts(abridge: float, name: str) -> list[str]:
        streams = atlas_streams(dataset, shares=DRAWING, abridge=abridge)
        stream = next(stream for stream in streams if stream.name == name)
        turns = [stream.read(i, torch.Generator().manual_seed(i)) for i in range(40)]
        return [part for found in turns for turn in found for part in turn.parts if isinstance(part, str)]

    assert len(parts(0.0, "seg-tissue")) == 40 < len(parts(0.6, "seg-tissue"))
    long = {entry.words for entry in dataset.entries if entry.task == "text-to-image"}
    assert set(parts(0.0, "text-to-image")) <= long and not set(parts(0.6, "text-to-image")) <= long


def test_nothing_is_mirrored_after_words_that_may_tell_left_from_right(
    dataset: AtlasDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, bool]] = []

    def watched(
        turns: list[Turn], generator: torch.Generator, *, task: str, mirror: bool = True
    ) -> list[Turn]:
        found.append((len(turns[0].parts), mirror))
        return list(turns)

    monkeypatch.setattr(presets, "augment", watched)
    streams = atlas_streams(dataset, shares=DRAWING, abridge=0.6)
    stream = next(stream for stream in streams if stream.name == "seg-tissue")
    for i in range(40):
        stream.read(i, torch.Generator().manual_seed(i))
    assert {mirror for parts, mirror in found if parts > 2} == {False}
    assert True in {mirror for parts, mirror in found if parts == 2}


def test_levels_elsewhere_are_those_of_other_planes(dataset: AtlasDataset) -> None:
    elsewhere = _levels_elsewhere(dataset)
    assert "the frontal pole" in elsewhere["axial"] and "the vertex" not in elsewhere["axial"]
    assert "the vertex" in elsewhere["coronal"] and "the thalamus" not in elsewhere["coronal"]
    assert elsewhere[""] == []


def test_a_history_is_a_line_of_its_own_that_hangs_on_the_generator() -> None:
    lines = {history(torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert len(lines) == 20 and all(line.endswith(".") and ": " in line for line in lines)
    assert any(line.startswith("History: ") for line in lines)
