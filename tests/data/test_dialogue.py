# SPDX-License-Identifier: Apache-2.0
"""Records become dialogues with their images in place, and damaged images become rejects."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from monai_unimedvl.data.dialogue import dialogue, embed, pixels, shared_pixels
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Message, Record, Reject

COLOURS = {"a": (10, 20, 30), "b": (200, 0, 0), "c": (0, 90, 0), "d": (1, 2, 3)}


def png(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(stream, "PNG", **options)
    return stream.getvalue()


def image(name: str, height: int = 2, width: int = 3) -> ImageFile:
    """A picture of one colour of its own."""
    filled = np.full((height, width, 3), COLOURS[name], np.uint8)
    return ImageFile(f"{name}.png", height, width, content=png(filled))


def record(*said: tuple[Any, str], shown: str = "", drawn: str = "", task: str = "vqa") -> Record:
    return Record(
        id="r", main_task_type="t", sub_task_type=task, modality="mri", dataset="d", licence="MIT",
        source="s", input_img=tuple(map(image, shown)),
        output_img=tuple(map(image, drawn)),
        message=tuple(Message(who, words) for who, words in said),
    )  # fmt: skip


def written(item: Record) -> list[str]:
    """Each turn as its role, a colon, and its parts; an image by its name."""

    def part(value: str | Tensor) -> str:
        if isinstance(value, str):
            return value
        colour = tuple(int(v) for v in (value[:, 0, 0] * 255).round())
        return next(name.upper() for name, other in COLOURS.items() if other == colour)

    return [f"{turn.role}: {' '.join(map(part, turn.parts))}" for turn in dialogue(item)]


def test_images_stand_at_their_marks() -> None:
    said = [("human", "See <image> and <image>: which?"), ("gpt", "This <image>."), ("human", "<image> now?")]
    item = record(*said, ("gpt", "No."), shown="abc", drawn="d")
    assert written(item) == [
        "user: See A and B : which?",
        "assistant: This D .",
        "user: C now?",
        "assistant: No.",
    ]


def test_without_marks_what_is_read_comes_first_and_what_is_drawn_last() -> None:
    said = [("human", "Make it sharp."), ("gpt", "Here it is.")]
    assert written(record(*said, shown="ab", drawn="c")) == [
        "user: A B Make it sharp.", "assistant: Here it is. C",
    ]  # fmt: skip
    assert written(record(*said, shown="a", drawn="c", task="counterfactual")) == [
        "user: A Make it sharp.", "assistant: C Here it is.",
    ]  # fmt: skip
    assert written(record(said[0], drawn="cd")) == ["user: Make it sharp.", "assistant: C D"]
    assert written(record(said[1], shown="a")) == ["user: A", "assistant: Here it is."]


def test_nothing_to_learn_is_an_error_with_its_code() -> None:
    for item in (record(("human", "Hello?")), record(("human", "Hello?"), ("gpt", " ")), record()):
        with pytest.raises(InvalidRecord, match="record r has no answer and no image to draw") as caught:
            dialogue(item)
        assert caught.value.code == "nothing-to-learn"


def test_values_come_as_they_lie_in_the_file() -> None:
    deep = np.array([[0, 65535], [32768, 1]], np.uint16)
    found = pixels(ImageFile("a.png", 2, 2, content=png(deep)))
    assert torch.equal(found, torch.tensor(deep.astype(np.float32)).div(65535).expand(3, 2, 2))
    grey = np.array([[0, 255], [128, 1]], np.uint8)
    assert torch.equal(
        pixels(ImageFile("a.png", 2, 2, content=png(grey))),
        torch.tensor(grey).float().div(255).expand(3, 2, 2),
    )
    assert pixels(image("b"))[:, 1, 2].mul(255).tolist() == [200, 0, 0]


DAMAGED = {
    "cut": ("image-damaged", image("a").content[:40]),  # type: ignore[index]
    "empty": ("image-damaged", b""),
    "text": ("image-damaged", b"no picture at all"),
    "size": ("image-damaged", png(np.zeros((5, 5), np.uint8))),
    "float": ("image-damaged", None),
    "absent": ("image-missing", None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_image_makes_its_record_a_reject(name: str, tmp_path: Path) -> None:
    code, content = DAMAGED[name]
    if name == "float":
        Image.fromarray(np.zeros((2, 3), np.float32)).save(tmp_path / "a.tif")
        content = (tmp_path / "a.tif").read_bytes()
    broken = ImageFile("x.png", 2, 3, content=content)
    item = Record(**{**vars(record(("gpt", "a"))), "input_img": (broken,)})
    with pytest.raises(InvalidRecord) as caught:
        dialogue(item)
    assert caught.value.code == code
    (found,) = embed([item], tmp_path)
    assert isinstance(found, Reject) and (found.code, found.id, found.step) == (code, "r", "embed")
    assert "x.png" in str(caught.value) and "x.png" not in found.reason


def test_a_picture_that_claims_a_billion_pixels_is_not_opened() -> None:
    huge = bytearray(png(np.zeros((2, 3), np.uint8)))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # the header's width and height
    huge[29:33] = __import__("zlib").crc32(bytes(huge[12:29])).to_bytes(4, "big")
    with pytest.raises(InvalidRecord, match="60000x60000 pixels|DecompressionBomb"):
        pixels(ImageFile("x.png", 60_000, 60_000, content=bytes(huge)))


def test_images_are_read_inside_the_corpus_only(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "secret.png").write_bytes(image("a").content or b"")
    (tmp_path / "corpus" / "a.png").write_bytes(image("a").content or b"")
    (tmp_path / "corpus" / "link.png").symlink_to(tmp_path / "secret.png")
    assert torch.equal(pixels(ImageFile("a.png", 2, 3), tmp_path / "corpus"), pixels(image("a")))
    for name in ("link.png", "b.png"):
        with pytest.raises(InvalidRecord, match=f"image {name} is not embedded"):
            pixels(ImageFile(name, 2, 3), tmp_path / "corpus")
    kept = next(iter(embed([Record(**{**vars(record()), "input_img": (ImageFile("a.png", 2, 3),)})],
                           tmp_path / "corpus")))  # fmt: skip
    assert isinstance(kept, Record) and kept.input_img[0].content == image("a").content


def test_a_kept_picture_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    first, again = shared_pixels(image("a")), shared_pixels(image("a"))
    assert first is again and torch.equal(first, pixels(image("a")))
    (tmp_path / "p.png").write_bytes(image("a").content or b"")
    stored = ImageFile("p.png", 2, 3)
    assert shared_pixels(stored, tmp_path) is first
    (tmp_path / "p.png").write_bytes(image("b").content or b"")
    assert torch.equal(shared_pixels(stored, tmp_path), pixels(image("b")))
    with pytest.raises(InvalidRecord, match="the record says 3x3"):
        shared_pixels(ImageFile("p.png", 3, 3), tmp_path)


def test_a_link_out_of_the_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus-2").mkdir()
    (tmp_path / "corpus-2" / "a.png").write_bytes(image("a").content or b"")
    (tmp_path / "corpus" / "a.png").symlink_to(tmp_path / "corpus-2" / "a.png")
    with pytest.raises(InvalidRecord, match="not embedded"):
        pixels(ImageFile("a.png", 2, 3), tmp_path / "corpus")
