# SPDX-License-Identifier: Apache-2.0
"""A record in training shows a network of squares what the command line will show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.record import ImageFile
from monai_unimedvl.sequence import Turn, View
from monai_unimedvl.transforms.choosing import Choice, choose
from monai_unimedvl.transforms.geometry import Box
from monai_unimedvl.transforms.image import Rule
from monai_unimedvl.transforms.regions import Region, moved, region_from_source, regions_in
from monai_unimedvl.transforms.segments import ToSegments
from monai_unimedvl.transforms.squares import squared


class Letters:
    """A tokenizer of bytes."""

    def encode(self, text: str) -> Tensor:
        return torch.tensor(list(text.encode()))


@pytest.mark.parametrize("kind", ["8 bits", "12 of 16 bits"])
@pytest.mark.parametrize("size", [(40, 64), (63, 40), (48, 48)])
def test_a_record_and_a_file_become_the_same_tokens_and_the_same_box(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(0, 4096, size)
    stored = values.astype(np.uint16) if kind != "8 bits" else (values // 16).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    record = pixels(ImageFile("a.png", *size), tmp_path)
    box = Region(3, 5, 30, 20, "lesion")
    said = [Turn("user", [record, "Where?"]), Turn("assistant", [box.words(record)])]  # type: ignore[arg-type]
    to_segments = ToSegments(Letters(), view=Rule(64, 64, 8), canvas=Rule(64, 64, 8), square=True)
    view, _, answer = to_segments(said)
    (shown,), _ = choose(tmp_path / "a.png", Choice(square=True))
    asked = ToSegments(Letters(), view=Rule(64, 64, 8), canvas=Rule(64, 64, 8))([shown, "Where?"])
    assert isinstance(view, View) and isinstance(asked[0], View)
    assert view.grid == asked[0].grid == (8, 8) and torch.equal(view.patches, asked[0].patches)
    words = bytes(answer.ids.tolist()).decode()  # type: ignore[union-attr]
    wanted = region_from_source(shown, 3, 5, 30, 20, "lesion")
    (found,) = regions_in(words, shown)
    assert found.label == "lesion" and found.right > found.left
    for side in ("left", "top", "right", "bottom"):  # to a thousandth, which is rounded twice
        assert getattr(found, side) == pytest.approx(getattr(wanted, side), abs=0.0011 * max(size))


def test_marks_are_of_the_picture_before_them_and_words_stay() -> None:
    wide, tall = torch.rand(3, 20, 40), torch.rand(3, 40, 10)
    point = "<point>(500,0)</point>"
    turns = [
        Turn("user", [f"Before {point}", wide, f"at {point}", torch.rand(3, 8, 8), f"at {point}", tall]),
        Turn("assistant", [f"<ref>x</ref><box>(0, 0),(1000,1000)</box> and <box>none</box> {point}, 5 mm"]),
    ]
    found = squared(turns)
    said = [part for turn in found for part in turn.parts if isinstance(part, str)]
    assert said == [
        "Before <point>(500,250)</point>", "at <point>(500,250)</point>", f"at {point}",
        "<ref>x</ref><box>(375, 0),(625,1000)</box> and <box>none</box> <point>(500,0)</point>, 5 mm",
    ]  # fmt: skip
    pictures: list[Any] = [part for turn in found for part in turn.parts if isinstance(part, Tensor)]
    assert [tuple(picture.shape) for picture in pictures] == [(3, 40, 40), (3, 8, 8), (3, 40, 40)]
    assert torch.equal(found[0].parts[1][:, 10:30], wide), "padded about the middle"  # type: ignore[index]
    assert [turn.role for turn in found] == ["user", "assistant"]
    plain = [Turn("user", ["words alone"])]
    assert squared(plain) == plain


def test_marks_are_cut_to_a_part_of_their_picture_and_odd_ones_stay() -> None:
    part = Box(top=10, left=0, height=10, width=20)  # of 20 x 40
    said = "<box>(250,250),(750,1000)</box> <point>(900,100)</point>"
    assert moved(said, (20, 40), part) == "<box>(500,0),(1000,1000)</box> <point>(1000,0)</point>"
    for odd in ("<box>(250,250)</box>", "<point>(1,2),(3,4)</point>", "<box>1, 2, 3, 4, 5</box>"):
        assert moved(odd, (20, 40), part) == odd
