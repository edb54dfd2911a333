# SPDX-License-Identifier: Apache-2.0
"""Whole slides of pathology through MONAI's WSIReader: tiles where tissue is, at a stated scale.

A slide is never read whole: its outline comes from a coarse level, each tile from one that fits its scale.
Places are (row, column) in pixels of the finest level; in mm they count from the slide's upper left corner.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.wsi_reader import WSIReader
from monai.transforms import Transform
from monai.utils import TransformBackends
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from monai_unimedvl.packages import MissingPackage, needed
from monai_unimedvl.transforms.image import MAX_IMAGE_PIXELS, MIN_SIDE, PerKey, resize
from monai_unimedvl.transforms.read import opening, read

SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
MAYBE = (".tif", ".tiff")  # slides where they hold levels, or more than a picture may
OUTLINE = 1024  # pixels of the longer side on which tissue is looked for
BLOCK = 2048  # pixels; what is read at once for the outline
TILE_WIDTH = 322  # the TIFF tag
SATURATED = 0.04  # of [0, 1]; the least difference of colours in stained tissue


class ReadTiles(Transform):
    """Tiles (3, S, S) uint8 of a slide as a list; any other file or array is read as by `read`.

    Args:
        tile: S, side of a tile in pixels.
        microns: per pixel (0.5 is about 20x, 0.25 about 40x); None, or a slide that does not know its scale,
            gives the finest level.
        count: at most that many tiles, evenly spread over those that hold tissue; with policy "all" each.
        tissue: least share of a tile that tissue fills.
        nonfinite, frames: as `read` has them.

    Raises:
        MissingPackage: a slide, and OpenSlide is not installed.
        ValueError: no tissue, a file that OpenSlide does not open, a tile that is too small or large.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, tile: int = 512, microns: float | None = 0.5, count: int = 8, policy: str = "uniform",
        tissue: float = 0.5, nonfinite: float | None = None, frames: int | None = None,
    ) -> None:  # fmt: skip
        fits = MIN_SIDE <= tile <= 4096 and count >= 1 and 0 <= tissue <= 1
        if not fits or policy not in ("uniform", "all"):
            raise ValueError(
                f"ReadTiles got tile={tile}, count={count}, policy={policy!r}, tissue={tissue}, but "
                f'{MIN_SIDE} to 4096 pixels, 1 or more tiles, "uniform" or "all" and a share of 0 to 1 are '
                "expected: change it."
            )
        if microns is not None and not microns > 0:
            raise ValueError(f"ReadTiles got microns={microns}, expected a size above 0 or null: change it.")
        self.tile, self.microns, self.count, self.policy = tile, microns, count, policy
        self.tissue, self.nonfinite, self.frames = tissue, nonfinite, frames

    def __call__(self, source: Any) -> Any:
        """path of a slide -> list of (3, S, S); else what `read` gives"""
        if isinstance(source, str | os.PathLike) and (level := _levels(Path(source))):
            path = Path(source)
            with opening(path, "slide"):
                return self._tiles(path, level)
        return read(source, nonfinite=self.nonfinite, frames=self.frames)

    def _tiles(self, path: Path, backend: str) -> list[MetaTensor]:
        reader = WSIReader(backend=backend)
        slide = reader.read(str(path))
        try:
            size = reader.get_size(slide, 0)
            scale = _microns(reader, slide)
            step = self.microns / scale if self.microns and scale else 1.0  # finest pixels a tile pixel
            level = _level(reader, slide, step)
            side = max(1, round(self.tile * step))  # of a tile, in finest pixels
            if side > 4 * max(size):
                raise ValueError(
                    f"{path.name} has {size[1]}x{size[0]} pixels, less than a tile of {side}: lower tile or "
                    "microns."
                )
            places = self._places(tissue_outline(reader, slide), size, side)
            if not places:
                raise ValueError(
                    f"{path.name} shows no tile of {side} pixels that is {self.tissue:.0%} tissue: lower "
                    "tissue, tile or microns."
                )
            if self.policy == "uniform" and len(places) > self.count:
                places = [places[(2 * i + 1) * len(places) // (2 * self.count)] for i in range(self.count)]
            inside = max(1, round(side / reader.get_downsample_ratio(slide, level)))
            made = []
            for index, (row, column) in enumerate(places):
                values, _ = reader.get_data(slide, (row, column), (inside, inside), level)
                tile = torch.from_numpy(np.ascontiguousarray(values[:3], np.uint8))
                tile = resize(tile, (self.tile, self.tile))
                made.append(_placed(tile, path, size, (row, column), side, scale, index, len(places)))
            return made
        finally:
            if hasattr(slide, "close"):
                slide.close()

    def _places(self, tissue: Tensor, size: tuple[int, int], side: int) -> list[tuple[int, int]]:
        """Upper left corners of the tiles that hold tissue, in reading order."""
        down, across = tissue.shape[0] / size[0], tissue.shape[1] / size[1]
        places = []
        for row in range(0, max(size[0] - side, 0) + 1, side):
            for column in range(0, max(size[1] - side, 0) + 1, side):
                box = tissue[
                    int(row * down) : max(int((row + side) * down), int(row * down) + 1),
                    int(column * across) : max(int((column + side) * across), int(column * across) + 1),
                ]
                if box.numel() and float(box.float().mean()) >= self.tissue:
                    places.append((row, column))
        return places


def tissue_outline(reader: WSIReader, slide: Any) -> Tensor:
    """True where tissue is, (h, w) with a longer side of at most `OUTLINE` pixels.

    Stain is colour and glass is grey: tissue is where the colours of a pixel differ beyond Otsu's threshold.
    """
    levels = range(reader.get_level_count(slide))
    level = next((n for n in reversed(levels) if max(reader.get_size(slide, n)) >= OUTLINE), 0)
    height, width = reader.get_size(slide, level)
    ratio = reader.get_downsample_ratio(slide, level)
    scale = max(1.0, max(height, width) / OUTLINE)
    seen = torch.zeros(max(1, round(height / scale)), max(1, round(width / scale)))
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            block = min(BLOCK, height - top), min(BLOCK, width - left)
            values, _ = reader.get_data(slide, (round(top * ratio), round(left * ratio)), block, level)
            rgb = torch.from_numpy(np.ascontiguousarray(values[:3])).float() / 255
            rows = slice(round(top / scale), min(round((top + block[0]) / scale), seen.shape[0]))
            columns = slice(round(left / scale), min(round((left + block[1]) / scale), seen.shape[1]))
            if rows.stop > rows.start and columns.stop > columns.start:
                mean = adaptive_avg_pool2d(rgb, (rows.stop - rows.start, columns.stop - columns.start))
                seen[rows, columns] = mean.amax(0) - mean.amin(0)
    return seen > max(_otsu(seen), SATURATED)


def _otsu(values: Tensor) -> float:
    """The threshold that parts `values` of [0, 1] into two groups of least spread (Otsu 1979)."""
    counts = torch.histc(values, 256, 0, 1).double()
    centres = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    below = counts.cumsum(0)
    above = below[-1] - below
    sums = (counts * centres).cumsum(0)
    between = (sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)) ** 2 * below * above
    return float(centres[int(between.argmax())])


def _levels(path: Path) -> str:
    """The backend that opens a slide; "" for what is none."""
    suffix = path.suffix.lower()
    if suffix not in (*SLIDES, *MAYBE) or not path.is_file():
        return ""
    try:
        openslide: Any = needed("openslide", "A slide", "wsi")
    except MissingPackage:
        if suffix in SLIDES or _tiled(path):
            raise
        return ""
    if openslide.OpenSlide.detect_format(str(path)):
        if suffix in SLIDES:
            return "openslide"
        with opening(path, "slide"), openslide.OpenSlide(str(path)) as slide:
            width, height = slide.dimensions
            return "openslide" if slide.level_count > 1 or width * height > MAX_IMAGE_PIXELS else ""
    if suffix in SLIDES:
        raise ValueError(
            f"{path.name} is no slide that OpenSlide opens: copy it again, or export it as a tiled TIFF."
        )
    return ""


def _tiled(path: Path) -> bool:
    """Whether a TIFF is laid out as slides are: in tiles, and of several levels or larger than a picture."""
    try:
        with Image.open(path) as file:
            large = file.width * file.height > MAX_IMAGE_PIXELS or getattr(file, "n_frames", 1) > 1
            return large and TILE_WIDTH in getattr(file, "tag_v2", {})
    except Image.DecompressionBombError:
        return True
    except Exception:  # `read` says what is wrong with it
        return False


def _microns(reader: WSIReader, slide: Any) -> float | None:
    """Per pixel of the finest level, or None."""
    try:
        return float(np.mean(reader.get_mpp(slide, 0))) or None
    except ValueError:
        return None


def _level(reader: WSIReader, slide: Any, step: float) -> int:
    """The coarsest level that is as fine as `step` finest pixels."""
    levels = range(reader.get_level_count(slide))
    return max((n for n in levels if reader.get_downsample_ratio(slide, n) <= step * 1.01), default=0)


def _placed(
    tile: Tensor, path: Path, size: tuple[int, int], place: tuple[int, int], side: int, scale: float | None,
    index: int, count: int,
) -> MetaTensor:  # fmt: skip
    """A tile with `meta["source"]`, its spacing and place in mm where the slide knows its scale."""
    pixels = side / tile.shape[-1]  # finest ones a pixel of the tile
    affine = np.eye(4)
    if scale:
        affine[:2, :2] *= pixels * scale / 1000
        affine[:2, 3] = (np.array(place) + (pixels - 1) / 2) * scale / 1000
    middle = affine @ [(tile.shape[1] - 1) / 2, (tile.shape[2] - 1) / 2, 0, 1]
    spacing = [*np.diag(affine)[:2].round(9).tolist(), 1.0]
    source: dict[str, Any] = {
        "file": str(path), "shape": [3, *size], "kind": "slide", "index": index, "count": count,
        "size": list(tile.shape[1:]), "tile": {"row": place[0], "column": place[1], "side": side},
    }  # fmt: skip
    if scale:
        source["tile"]["microns"] = pixels * scale
        source |= {"spacing": spacing, "position": middle[:3].round(6).tolist(), "affine": affine.tolist()}
    meta = {"file": str(path), "filename_or_obj": str(path), "kind": "image", "source": source}
    return MetaTensor(tile, affine=torch.from_numpy(affine), meta=meta)


class ReadTilesd(PerKey):
    """Dictionary form of `ReadTiles`; a slide's key holds the list of its tiles."""

    array = ReadTiles


ReadTilesD = ReadTilesDict = ReadTilesd
