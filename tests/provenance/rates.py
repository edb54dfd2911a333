# SPDX-License-Identifier: Apache-2.0
"""How often marks are found and cases told apart: the benchmark counts on 100 pictures, a test on a few."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from monai_unimedvl.provenance import Facts, examine, manifest_path, save_image
from monai_unimedvl.provenance.invisible import detect

FACTS = Facts("A picture of the benchmark.", 7, "ab" * 32, "draw")
CASES = ("marked", "altered", "unmarked", "stripped")


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    """Through a JPEG file."""

    def through(pixels: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream))

    return through


def noisy(pixels: np.ndarray) -> np.ndarray:
    """With noise of 3 grey levels."""
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Without colours."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def smaller(pixels: np.ndarray) -> np.ndarray:
    """At three quarters of the size."""
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)))


def darker(pixels: np.ndarray) -> np.ndarray:
    """Another window: half the contrast."""
    return np.rint(pixels * 0.5 + 40).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "8-bit PNG": lambda pixels: pixels,
    "JPEG 90": jpeg(90),
    "JPEG 85": jpeg(85),
    "JPEG 75": jpeg(75),
    "JPEG 90 of the grey picture": lambda pixels: jpeg(90)(grey(pixels)),
    "crop by 13 x 21 pixels, JPEG 90": lambda pixels: jpeg(90)(pixels[13:, 21:]),
    "noise of 3 grey levels": noisy,
    "half the contrast": darker,
    "turned by 90 degrees": lambda pixels: np.ascontiguousarray(np.rot90(pixels)),
    "at 3/4 of the size": smaller,
}


def four_files(pixels: np.ndarray, folder: Path) -> dict[str, Path]:
    """A file of each case out of one picture, (H, W) or (H, W, 3)."""
    three = np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels
    image = torch.from_numpy(three / 255).float().movedim(-1, 0)
    marked = save_image(image, folder / "marked.png", FACTS)
    with Image.open(marked) as file:
        kept, text = np.array(file), dict(file.text)
    Image.fromarray(kept).save(folder / "stripped.jpg", quality=90)
    Image.fromarray(pixels).save(folder / "unmarked.jpg", quality=90)
    kept[:8, :8] = 255 - kept[:8, :8]
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    Image.fromarray(kept).save(folder / "altered.png", pnginfo=chunks)
    manifest_path(marked).unlink()
    return {name.stem: name for name in folder.iterdir()}


def told_apart(pictures: list[np.ndarray]) -> Counter[tuple[str, str]]:
    """(case, what it was taken for) -> how often."""
    counts: Counter[tuple[str, str]] = Counter()
    for pixels in pictures:
        with tempfile.TemporaryDirectory() as folder:
            for case, path in four_files(pixels, Path(folder)).items():
                counts[case, examine(path).case] += 1
    return counts


def rates(
    pictures: list[np.ndarray],
    marked: list[np.ndarray],
    change: Callable[[np.ndarray], np.ndarray],
    crops: bool,
) -> tuple[list[float], list[float], int]:
    """Scores of marked and of unmarked pictures after a change, and how many ids were read."""
    found = [detect(change(pixels), crops=crops) for pixels in marked]
    false = [detect(change(pixels), crops=crops).score for pixels in pictures]
    return [one.score for one in found], false, sum(one.id == FACTS.id() for one in found)
