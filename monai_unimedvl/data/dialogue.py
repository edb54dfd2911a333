# SPDX-License-Identifier: Apache-2.0
"""A record -> the dialogue that it teaches, as `ToSegments` reads it; its images out of files or bytes.

    dialogue(record, root="corpus")   # [Turn("user", [image, "Which plane?"]), Turn("assistant", ...)]

Nothing is done to the pixels but scaling to [0, 1]: windows and borders are the recipe's, before the record.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from monai_unimedvl.data.bare import bare
from monai_unimedvl.data.record import PLACEHOLDER, ImageFile, InvalidRecord, Record, Reject
from monai_unimedvl.sequence import Turn
from monai_unimedvl.transforms.image import MAX_IMAGE_PIXELS
from monai_unimedvl.transforms.intensity import ToUnit

BEFORE_WORDS = "counterfactual"  # sub-tasks with this in their name draw first and explain then
SHARED_BYTES = 64_000_000  # of the pictures that `shared_pixels` keeps, in each process


def dialogue(record: Record, root: str | Path | None = None) -> list[Turn]:
    """The turns of a record, its images (3, H, W) in [0, 1] at their `<image>` marks.

    Without marks the images to read open the first human turn, and those to draw end the last answer, or
    open it in a counterfactual sub-task, where the words explain what was drawn.

    Args:
        root: folder that the images' paths start from; None where they are embedded.

    Raises:
        InvalidRecord: nothing to learn, or an image that is missing or damaged; with its reason code.
    """
    load = partial(pixels, root=root)
    shown, drawn = iter(record.input_img), iter(record.output_img)
    turns: list[tuple[str, list[str | Tensor]]] = []
    for message in record.message:
        images = shown if message.speaker == "human" else drawn
        role = "user" if message.speaker == "human" else "assistant"
        turns.append((role, list(_parts(message.value, images, load))))
    if unplaced := [load(image) for image in shown]:
        _of(turns, "user", first=True)[:0] = unplaced
    if unplaced := [load(image) for image in drawn]:
        answer = _of(turns, "assistant", first=False)
        place = 0 if BEFORE_WORDS in record.sub_task_type else len(answer)
        answer[place:place] = unplaced
    found = [Turn(role, parts) for role, parts in turns if parts]
    if not any(turn.role == "assistant" for turn in found):
        raise InvalidRecord(
            "nothing-to-learn", f"record {record.id} has no answer and no image to draw, expected either."
        )
    return found


def pixels(image: ImageFile, root: str | Path | None = None) -> Tensor:
    """(3, H, W) float32 in [0, 1]: grey as three equal colours, 16 bits as they are, no alpha.

    Raises:
        InvalidRecord: missing, damaged, too large, or not of the size that the record says.
    """
    content = read_content(image, root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as file:
                if file.width * file.height > MAX_IMAGE_PIXELS:
                    raise _refused(
                        image,
                        f"says it has {file.width}x{file.height} pixels, expected at most "
                        f"{MAX_IMAGE_PIXELS:,}.",
                    )
                values = _values(ImageOps.exif_transpose(file))
    except InvalidRecord:
        raise
    except Exception as error:  # PIL raises many kinds for damaged files
        raise _refused(image, f"cannot be read ({type(error).__name__}), expected a picture.") from error
    if values.shape[1:] != (image.height, image.width):
        raise _refused(
            image,
            f"has {values.shape[1]}x{values.shape[2]} pixels, the record says {image.height}x{image.width}.",
        )
    return values


_SHARED: OrderedDict[bytes, Tensor] = OrderedDict()


def shared_pixels(image: ImageFile, root: str | Path | None = None) -> Tensor:
    """As `pixels`, but the last pictures are kept: the steps of a build look at each one after the other.

    Not to be written to: the next one to ask gets the same tensor.

    Raises:
        InvalidRecord: as `pixels`.
    """
    content = read_content(image, root)
    key = hashlib.sha256(content).digest()
    if (known := _SHARED.get(key)) is None or known.shape[1:] != (image.height, image.width):
        known = _SHARED[key] = pixels(replace(image, content=content))
        while len(_SHARED) > 1 and sum(each.nbytes for each in _SHARED.values()) > SHARED_BYTES:
            _SHARED.popitem(last=False)
        while len(_SHARED) > 8:
            _SHARED.popitem(last=False)
    return known


def read_content(image: ImageFile, root: str | Path | None = None) -> bytes:
    """The bytes of an image file: those embedded, else those under the root; links out of it are refused.

    Raises:
        InvalidRecord: there are none.
    """
    if image.content is not None:
        return image.content
    missing = _refused(image, "is not embedded, expected a file in the corpus.", "image-missing")
    if root is None:
        raise missing
    folder = os.path.realpath(root)
    path = os.path.realpath(os.path.join(folder, image.path))
    if not path.startswith(os.path.join(folder, "")) or not os.path.isfile(path):
        raise missing
    with open(path, "rb") as stream:
        return stream.read()


def embed(records: Iterable[Record | Reject], root: str | Path) -> Iterator[Record | Reject]:
    """Each record with its images' bytes in it, as shards hold them; unreadable ones become rejects.

    What a picture file carries beside its pixels, where names may stand, is left behind (`data.bare`).
    """
    for item in records:
        if isinstance(item, Reject):
            yield item
            continue
        try:
            yield replace(
                item,
                input_img=tuple(_embedded(image, root) for image in item.input_img),
                output_img=tuple(_embedded(image, root) for image in item.output_img),
            )
        except InvalidRecord as error:
            yield Reject(error.code, error.reason, item.id, "embed")


def _embedded(image: ImageFile, root: str | Path) -> ImageFile:
    whole = replace(image, content=read_content(image, root))
    pixels(whole)
    return replace(whole, content=bare(whole.content or b""))


def _refused(image: ImageFile, what: str, code: str = "image-damaged") -> InvalidRecord:
    """The error about an image, which alone names its file; the reason of the reject does not."""
    return InvalidRecord(code, f"an image {what}", f"image {image.path} {what}")


def _values(file: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1]"""
    if file.mode in ("I", "F") or file.mode.startswith("I;16"):
        grey = torch.from_numpy(np.array(file, dtype=np.float32))
        if file.mode == "F" or float(grey.max()) > 65535 or float(grey.min()) < 0:
            raise ValueError("a picture of real or negative numbers has no range")
        return ToUnit()(grey[None]).expand(3, -1, -1).contiguous()  # as inference shows it
    colours = torch.from_numpy(np.array(file.convert("RGB")))  # (H, W, 3)
    return colours.movedim(-1, 0).float() / 255


def _parts(
    words: str, images: Iterator[ImageFile], load: Callable[[ImageFile], Tensor]
) -> Iterator[str | Tensor]:
    """The words between the marks, and the images at them."""
    for place, piece in enumerate(words.split(PLACEHOLDER)):
        if place:
            yield load(next(images))
        if piece.strip():
            yield piece.strip()


def _of(turns: list[tuple[str, list[str | Tensor]]], role: str, *, first: bool) -> list[str | Tensor]:
    """The parts of the first or last turn of a role; a new turn where there is none."""
    found = [parts for who, parts in turns if who == role]
    if not found:
        found = [[]]
        turns.insert(0 if first else len(turns), (role, found[0]))
    return found[0 if first else -1]
