# SPDX-License-Identifier: Apache-2.0
"""Shards of one's own as what a run learns from, and settings that mean the same on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from monai_unimedvl.data.atlas_records import _image
from monai_unimedvl.data.record import Message, Record
from monai_unimedvl.data.shards import write_shards
from monai_unimedvl.training.material import corpus_material, names_of
from monai_unimedvl.training.settings import Settings

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three edits and two questions to learn from, one edit to validate on."""

    def record(number: int, task: str, split: str) -> Record:
        pixels = np.full((8, 8), 20 * number, np.uint8)
        drawn = (_image("b.png", pixels, {}),) if task == "sr4" else ()
        said = (Message("human", "Do it."), Message("gpt", "Here." if task == "sr4" else "Yes."))
        return Record(
            id=f"r{number}", main_task_type="t", sub_task_type=task, modality="mri" if number % 2 else "ct",
            dataset="d", licence="MIT", source="s", input_img=(_image("a.png", pixels, {}),),
            output_img=drawn, message=said, split=split,
        )  # fmt: skip

    tasks = ["sr4", "sr4", "sr4", "vqa", "vqa", "sr4"]
    records = [record(n, task, "val" if n == 5 else "train") for n, task in enumerate(tasks)]
    write_shards(records, tmp_path / "shards")
    return tmp_path / "shards"


def test_a_corpus_is_lessons_validation_and_a_drawing_of_each_task(folder: Path) -> None:
    found = corpus_material(folder)
    assert {s.name: s.length for s in found.lessons["interleaved"]} == {"sr4:ct": 2, "sr4:mri": 1}
    assert [s.name for s in found.validation["interleaved"]] == ["sr4:mri"]
    (case,) = found.cases
    assert case.prompt[1] == "Do it." and case.truth is not None and case.truth.shape == (3, 8, 8)
    assert found.names("sr4:ct/r0/3") == names_of("sr4:ct/r0/3") == ["sr4", "ct"]


def test_tasks_can_be_chosen_and_an_unknown_one_is_named(folder: Path) -> None:
    found = corpus_material(folder, tasks=["vqa"])
    assert [s.name for each in found.lessons.values() for s in each] == ["vqa:ct", "vqa:mri"]
    assert not any(found.validation.values()) and not found.cases
    with pytest.raises(ValueError, match="tasks has 'sr', but the shards have sr4, vqa"):
        corpus_material(folder, tasks=["sr"])


def test_images_to_validate_on_are_never_augmented(folder: Path) -> None:
    def augment(turns, generator, record):  # type: ignore[no-untyped-def]
        raise AssertionError(record.id)

    found = corpus_material(folder, augment=augment)
    assert found.validation["interleaved"][0].read(0, None)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="r0"):
        found.lessons["interleaved"][0].read(0, None)  # type: ignore[arg-type]


def test_a_batch_is_shared_by_the_ranks_and_lanes_do_not_depend_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for ranks, each in ((1, 4), (2, 2), (4, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert Settings(batch=4).packs_each == each and Settings(accumulate=3).packs_each == 3
        assert Settings().shared_lanes == Settings(workers=2).shared_lanes == 8
    with pytest.raises(ValueError, match="batch is 6 packs for 4 ranks, expected a multiple"):
        _ = Settings(batch=6).packs_each
    assert Settings(workers=3).shared_lanes == 24 and Settings(lanes=5).shared_lanes == 5
