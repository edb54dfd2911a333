# SPDX-License-Identifier: Apache-2.0
"""What is left out without a model, each for its reason, and the sample for expert readers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sources import png

from monai_unimedvl.data.quality import Boilerplate, Coarse, ReviewSample, allotted, repeated
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject
from monai_unimedvl.data.step import Tally


def record(
    id: str = "r", words: str = "An axial CT.", size: int = 160, path: str = "a.png", **more: Any
) -> Record:
    given = {
        "main_task_type": "image-to-text", "sub_task_type": "caption", "modality": "ct", "dataset": "d",
        "licence": "MIT", "source": "s", "input_img": (ImageFile(path, size, size),),
        "message": (Message("human", "<image> Say."), Message("gpt", words)),
    }  # fmt: skip
    return Record(id=id, **{**given, **more})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    png(tmp_path / "a.png", size=(160, 160))
    for name, pixels in {
        "constant": np.full((160, 160), 7, np.uint8),
        "blank": np.where(np.arange(25600).reshape(160, 160) < 60, 200, 0).astype(np.uint8),
        "bright": np.where(np.arange(25600).reshape(160, 160) < 2000, 9, 255).astype(np.uint8),
    }.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def judged(root: Path, one: Record, **options: Any) -> str:
    tally = Tally()
    (item,) = Coarse(root=str(root), **options)([one], tally)
    assert tally.taken == 1
    if isinstance(item, Reject):
        assert item.id == one.id and item.step == "coarse"
        return item.code
    assert item is one
    return ""


def test_the_papers_thresholds_are_inclusive(root: Path) -> None:
    png(root / "s.png", size=(128, 128))
    assert judged(root, record(size=128, path="s.png")) == ""
    assert judged(root, record(size=127, path="s.png")) == "side-too-small"
    for length, code in [(10, ""), (9, "text-too-short"), (1024, ""), (1025, "text-too-many")]:
        words = "".join(chr(97 + n % 26) for n in range(length - 4))
        assert judged(root, record(words=words)) == code, length  # "Say." are four more


@pytest.mark.parametrize(
    "name, code", [("constant", "constant"), ("blank", "blank"), ("bright", "saturated")]
)
def test_images_that_show_nothing_are_left_out(root: Path, name: str, code: str) -> None:
    assert judged(root, record(path=f"{name}.png")) == code
    drawn = record(
        path=f"{name}.png", input_img=(), output_img=(ImageFile(f"{name}.png", 160, 160),),
        message=(Message("human", "Draw an axial CT."),),
    )  # fmt: skip
    assert judged(root, drawn) == code
    both = record(input_img=(ImageFile("a.png", 160, 160),), output_img=drawn.output_img)
    assert judged(root, both) == ""  # a mask may be empty
    assert judged(root, record(path=f"{name}.png"), max_blank=1, max_saturated=1) in ("", "constant")


def test_damaged_and_missing_images_are_rejects_of_their_own(root: Path) -> None:
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:200])
    assert judged(root, record(path="cut.png")) == "image-damaged"
    assert judged(root, record(path="none.png")) == "image-missing"
    assert judged(root, record(size=161)) == "image-damaged"


def test_words_that_repeat_themselves_are_left_out(root: Path) -> None:
    assert judged(root, record(words="The lung is clear. " * 6)) == "repeated-words"
    assert judged(root, record(words="no " * 60)) == "repeated-words"
    assert (
        judged(root, record(words="The lung is clear. The heart is normal. No effusion is seen. Bones ok."))
        == ""
    )
    assert repeated("short") == 0.0
    assert judged(root, record(words="The lung is clear. " * 6), max_repeats=1) == ""


def test_thresholds_are_options_and_presets(root: Path) -> None:
    png(root / "s.png", size=(64, 64))
    small = record(size=64, path="s.png")
    assert judged(root, small) == "side-too-small" and judged(root, small, preset="atlas") == ""
    assert judged(root, small, min_side=32) == ""
    with pytest.raises(ValueError, match="preset is 'best'"):
        Coarse(preset="best")
    with pytest.raises(ValueError, match="min_chars 50 is above max_chars 20"):
        Coarse(min_chars=50, max_chars=20)
    silent = replace(record(), message=())
    assert judged(root, silent) == ""  # words come later


def test_a_long_text_beside_many_images_is_boilerplate() -> None:
    words = (
        "This examination was reported by the night service and will be read again tomorrow morning at eight."
    )
    many = [record(f"r{n}", words, path=f"{n}.png") for n in range(6)]
    many += [record("s", words, path="0.png"), record("t", "Clear lungs.", path="9.png")]
    items = list(Boilerplate(most=3)(many))
    assert [type(item).__name__ for item in items] == ["Record"] * 3 + ["Reject"] * 3 + ["Record"] * 2
    assert {item.code for item in items if isinstance(item, Reject)} == {"boilerplate"}


def test_a_sample_has_its_share_of_each_stratum_and_leaves_none_empty() -> None:
    many = [record(f"a{n}", modality="ct") for n in range(90)] + [
        record(f"b{n}", modality="mri") for n in range(9)
    ]
    many.append(record("c", modality="oct"))
    step = ReviewSample(count=20, seed=1)
    items = [item for item in step(many) if isinstance(item, Record)]
    assert len(items) == 100
    chosen = [item for item in items if item.facts.get("review")]
    assert Counter(item.modality for item in chosen) == {"ct": 17, "mri": 2, "oct": 1}
    assert chosen == [item for item in step(many) if isinstance(item, Record) and item.facts.get("review")]
    assert chosen != [
        i for i in ReviewSample(count=20, seed=2)(many) if isinstance(i, Record) and i.facts.get("review")
    ]
    assert chosen[0].provenance["facts"]["by"] == "review-sample" if "facts" in chosen[0].provenance else True
    with pytest.raises(ValueError, match="by has 'age'"):
        ReviewSample(by=("age",))


@pytest.mark.parametrize(
    "sizes, count", [({"a": 3, "b": 1}, 2), ({"a": 5, "b": 5, "c": 1}, 4), ({"a": 2}, 9), ({}, 3)]
)
def test_allotments_add_up_and_never_exceed(sizes: dict[str, int], count: int) -> None:
    given = allotted(sizes, count)
    assert sum(given.values()) == min(count, sum(sizes.values()))
    assert all(given[name] <= size for name, size in sizes.items())
