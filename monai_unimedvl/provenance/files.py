# SPDX-License-Identifier: Apache-2.0
"""Pictures, volumes, words and pages, each written whole, marked, and with a manifest beside it.

PNG and TIFF carry the mark in text, NIfTI in an extension and the header's description, HTML in a comment;
pictures and volumes of 256 x 256 and more carry an invisible one too (`invisible`). Beside each file NAME
lies NAME.json. Neither holds a path, a file name or anything of an input's header, so no patient identifier
comes along; what the user writes into the prompt is kept as it is.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

if TYPE_CHECKING:
    from torch import Tensor

from monai_unimedvl.atomic import write
from monai_unimedvl.provenance import invisible as unseen
from monai_unimedvl.provenance.facts import (
    NOTICE,
    SOFTWARE,
    Facts,
    Mark,
    of_array,
    of_text,
    sealed,
    to_json,
    write_marked,
)

PICTURES = (".png", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")
COMMENT = 6  # code of a NIfTI extension that holds text
CHUNK = "Provenance"  # of a PNG: the whole mark; the others repeat some of it for people
DESCRIPTION, PROGRAM = 270, 305  # tags of TIFF
PAGE = "<!-- provenance ", " -->"


def save_image(image: Tensor, path: str | Path, facts: Facts, *, invisible: bool = True) -> Path:
    """Write a picture as a marked PNG or TIFF and its manifest; returns the path.

    Args:
        image: (3, H, W) in [0, 1]; or (H, W) uint8, a map of labels, kept as it is.
        invisible: also mark the pixels, where there are 256 x 256 of them; never those of labels.

    Raises:
        ValueError: the path does not end in .png or .tif, or cannot be written.
    """
    path = ending(path, PICTURES, "a picture")
    pixels = np.asarray(to_picture(image))
    pixels, applied = unseen_mark(pixels, facts, (0.0, 255.0), invisible, pixels.ndim == 2)
    mark = sealed({**facts.manifest(), "invisible_mark": applied.manifest(), "content": of_array(pixels)})
    stream = io.BytesIO()
    if path.suffix.lower() == ".png":
        Image.fromarray(pixels).save(stream, "PNG", pnginfo=_chunks(mark))
    else:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[DESCRIPTION], tags[PROGRAM] = json.dumps(mark), SOFTWARE
        Image.fromarray(pixels).save(stream, "TIFF", tiffinfo=tags, compression="tiff_deflate")
    return write_marked(stream.getvalue(), path, mark)


def save_volume(
    volume: Tensor, affine: np.ndarray | Tensor, path: str | Path, facts: Facts, *, invisible: bool = True
) -> Path:  # fmt: skip
    """Write a volume as a marked NIfTI and its manifest; returns the path.

    Args:
        volume: (X, Y, Z), written in its own type.
        affine: (4, 4) from voxels to RAS mm.
        invisible: also mark the slices along Z, where they are 256 x 256 or more and no whole numbers, which
            may be labels.

    Raises:
        ValueError: the path does not end in .nii or .nii.gz, or cannot be written.
    """
    path = ending(path, VOLUMES, "a volume")
    if volume.ndim != 3:
        raise ValueError(f"save_volume got shape {tuple(volume.shape)}, expected (X, Y, Z): pass one volume.")
    values = volume.detach().cpu().numpy()
    values, applied = mark_slices(values, facts, display_span(values), invisible, values.dtype.kind != "f")
    mark = sealed({**facts.manifest(), "invisible_mark": applied, "content": of_array(values)})
    file = nibabel.Nifti1Image(values, np.asarray(affine, dtype=np.float64))
    file.header["descrip"] = f"SYNTHETIC, {SOFTWARE}".encode()[:79]
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, json.dumps(mark).encode()))
    content = file.to_bytes()
    return write_marked(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content, path, mark)


def save_text(text: str, path: str | Path, facts: Facts) -> Path:
    """Write words as a JSON file: the manifest with `text` in it; returns the path."""
    path = ending(path, (".json",), "words")
    write(path, to_json(sealed({**facts.manifest(), "content": of_text(text), "text": text})))
    return path


def save_page(html: str, path: str | Path, facts: Facts) -> Path:
    """Write an HTML page and its manifest; returns the path. Its pictures are marked by who wrote it."""
    path = ending(path, (".html",), "a page")
    mark = sealed({**facts.manifest(), "content": of_text(html)})
    comment = json.dumps(mark).replace("-", "\\u002d")  # "--" would end it
    return write_marked(f"{html}{PAGE[0]}{comment}{PAGE[1]}".encode(), path, mark)


def png_mark(facts: Facts) -> PngImagePlugin.PngInfo:
    """The text chunks of a PNG that is part of something else, such as a page."""
    return _chunks(sealed(facts.manifest()))


def mark_slices(
    values: np.ndarray, facts: Facts, span: tuple[float, float], wanted: bool, labels: bool
) -> tuple[np.ndarray, Mark]:
    """A volume (X, Y, Z) with an invisible mark in each slice along Z, and what the mark says of it.

    Raises:
        ValueError: `span` is (black, white) and white is not above black.
    """
    if not wanted or labels or min(values.shape[:2]) < unseen.SIDE or span[0] == span[1]:
        return values, unseen_mark(values[..., 0], facts, span, wanted, labels)[1].manifest()
    marked = np.empty_like(values)
    count, least = 0, np.inf
    for index in range(values.shape[2]):
        shown = np.ascontiguousarray(values[..., index].T)  # rows first, as it will be looked at
        pixels, applied = unseen.embed(shown, facts.id(), span)
        marked[..., index] = pixels.T
        count += applied.id is not None
        least = min(least, np.inf if applied.psnr is None else applied.psnr)
    if not count:
        return values, applied.manifest()
    return marked, {"applied": True, "id": facts.id(), "psnr": least, "slices": [count, values.shape[2]]}


def display_span(values: np.ndarray) -> tuple[float, float]:
    """The values that a viewer would show as black and white: the 0.5th and the 99.5th percentile."""
    step = max(1, round((values.size / 2e6) ** (1 / 3)))
    low, high = np.percentile(values[::step, ::step, ::step], (0.5, 99.5))
    return float(low), float(high)


def to_picture(image: Tensor) -> Image.Image:
    """Floats (3, H, W) in [0, 1], or labels (H, W) uint8, as an 8-bit PIL picture."""
    if image.ndim == 2 and str(image.dtype) == "torch.uint8":
        return Image.fromarray(image.cpu().numpy())
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(
            f"save_image got {image.dtype} of shape {tuple(image.shape)}, expected floats (3, H, W) in [0, 1]"
            " or uint8 labels (H, W): convert it."
        )
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def ending(path: str | Path, endings: Sequence[str], what: str) -> Path:
    """The path, if its name ends as it should.

    Raises:
        ValueError: it does not.
    """
    path = Path(path)
    if not path.name.lower().endswith(tuple(endings)):
        raise ValueError(
            f"{path.name!r} came for {what}, but a name in {' or '.join(endings)} is expected: rename it."
        )
    return path


def unseen_mark(
    pixels: np.ndarray, facts: Facts, span: tuple[float, float], wanted: bool, labels: bool
) -> tuple[np.ndarray, unseen.Applied]:
    """A picture with the invisible mark, where it is wanted and can be, and what that came to."""
    if not wanted:
        return pixels, unseen.Applied(None, why="not wanted")
    if labels:
        return pixels, unseen.Applied(None, why="labels keep their numbers")
    if span[0] == span[1]:
        return pixels, unseen.Applied(None, why="one value everywhere")
    return unseen.embed(pixels, facts.id(), span)


def _chunks(mark: dict[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Synthetic", "true")
    chunks.add_text("Software", SOFTWARE)
    chunks.add_text("Comment", NOTICE)
    chunks.add_itxt("Prompt", mark["prompt"])
    chunks.add_text(CHUNK, json.dumps(mark))
    return chunks
