# SPDX-License-Identifier: Apache-2.0
"""COCO: images, boxes [x, y, width, height] and masks (polygons or run lengths) by category.

Boxes and masks are brought onto the pixels of the record's picture, which a recipe may have cut or resized,
and which a DICOM's own orientation may have turned: they are of its rows and columns as they are stored.
A pixel belongs to a polygon if its centre does. Where masks overlap the later one stands in the label map;
every box is kept.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_unimedvl.data.bare import ORIENTATION
from monai_unimedvl.data.facts import Box
from monai_unimedvl.data.ingest.base import Ingest, inside
from monai_unimedvl.data.ingest.nifti import check_pattern
from monai_unimedvl.data.ingest.regions import facts_of
from monai_unimedvl.data.record import InvalidRecord, Record
from monai_unimedvl.data.step import Item, option
from monai_unimedvl.transforms.deidentify import is_dicom
from monai_unimedvl.transforms.onto import labels_onto
from monai_unimedvl.transforms.regions import region_from_source
from monai_unimedvl.transforms.stored import as_shown, shown_from_stored

MOST = 255  # categories of a label map


@dataclass(frozen=True, kw_only=True)
class IngestCoco(Ingest):
    """Images of a COCO file with their boxes and masks."""

    name: ClassVar[str] = "ingest-coco"
    about: ClassVar[str] = "COCO JSON: boxes and masks of images, brought onto the pixels of the record"
    example: ClassVar[str] = "instances.json --images png/ --out corpus --dataset ours --modality endoscopy"
    images: str = option("", "folder of the images (default: that of the JSON)")
    patient_in: str = option("", "pattern that finds the patient in a file name; else each file is one")
    closed: bool = option(True, "what is not annotated in an image is not there")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.patient_in)
        _ = self.secret, self.categories

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """The file."""
        try:
            found = json.loads(Path(self.path).read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                "the COCO file is no JSON, expected images, annotations, categories: export it."
            ) from error
        lists = ("images", "annotations", "categories")
        if not isinstance(found, dict) or not all(isinstance(found.get(key), list) for key in lists):
            raise ValueError(f"the COCO file lacks a list, expected {', '.join(lists)}: export it again.")
        return found

    @functools.cached_property
    def categories(self) -> dict[int, str]:
        """Number -> name."""
        found = {
            each["id"]: str(each["name"]).strip()
            for each in self.content["categories"]
            if isinstance(each, Mapping)
            and isinstance(each.get("id"), int)
            and str(each.get("name", "")).strip()
        }
        if not found or len(found) > MOST or len(set(found.values())) < len(found):
            raise ValueError(
                f"the COCO file has {len(found)} categories with numbers and names of their own, expected 1 "
                f"to {MOST}: mend them."
            )
        return dict(sorted(found.items()))

    @functools.cached_property
    def annotations(self) -> dict[Any, list[Mapping[str, Any]]]:
        """Number of an image -> its annotations."""
        found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for each in self.content["annotations"]:
            if isinstance(each, Mapping) and isinstance(each.get("image_id"), int | str):
                found[each["image_id"]].append(each)
        return found

    @functools.cached_property
    def folder(self) -> Path:
        """Of the images."""
        return Path(self.images) if self.images else Path(self.path).parent

    def parts(self) -> Sequence[int]:
        """The numbers of the entries in `images`."""
        if not self.content["images"]:
            raise ValueError("the COCO file lists no image, expected some: export it again.")
        return range(len(self.content["images"]))

    def each(self, part: int) -> Iterable[Item]:
        """One image -> a record."""
        entry = self.content["images"][part]
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        return self.guarded(self._image(part), str(name or "image"), at=f"image {part + 1}")

    def place(self, path: Path | str, at: str = "") -> str:
        """The number of the image; its name where names are shown."""
        return f"{at}, {Path(path).name}" if self.show_names else at

    def _image(self, number: int) -> Iterator[Record]:
        entry = self.content["images"][number]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("file_name"), str):
            raise InvalidRecord("bad-row", "an entry of images has no file_name, expected one.")
        path = inside(self.folder, entry["file_name"])
        if _turned_by_exif(path):
            raise InvalidRecord(
                "geometry-differs",
                "the EXIF of the image turns it, and COCO does not say whether its regions are turned too: "
                "save it upright, without EXIF.",
            )
        pictures = self.pictures(path)
        if len(pictures) != 1:
            raise InvalidRecord(
                "wrong-dimensions",
                f"the image has {len(pictures)} pictures, expected one: COCO knows flat ones.",
            )
        picture = pictures[0]
        source = picture.meta.get("source") or {}
        height, width = source.get("size", picture.shape[1:])
        size = (int(width), int(height)) if source.get("transposed") else (int(height), int(width))
        stated = (entry.get("height"), entry.get("width"))
        if all(isinstance(side, int) for side in stated) and stated != size:
            raise InvalidRecord(
                "geometry-differs",
                f"the image has {size[0]} x {size[1]} pixels, the COCO file says {stated[0]} x {stated[1]}.",
            )
        boxes, masks = self._regions(entry.get("id"), picture, size)
        names = list(self.categories.values())
        facts: dict[str, Any] = {}
        if masks is not None:
            kept = self.save_pixels(masks, folder="masks")
            facts = facts_of(masks, names) | {"mask": {"path": kept.path, "labels": names}}
        counts = {name: sum(box.label == name for box in boxes) for name in names}
        facts["boxes"] = [box.to_json() for box in boxes]
        facts["labels"] = [name for name in names if counts[name] or name in facts.get("labels", [])]
        facts["absent"] = [name for name in names if name not in facts["labels"]] if self.closed else []
        others = [each for each in facts.get("measurements", []) if each["name"] != "count"]
        counted = [{"name": "count", "value": n, "unit": "", "of": name} for name, n in counts.items() if n]
        facts["measurements"] = others + counted
        named = re.search(self.patient_in, entry["file_name"]) if self.patient_in else None
        patient = self.patient(named.group(1) if named else f"file {entry['file_name']}")
        facts["patient_from"] = "patient" if named else "file"
        image = self.save(picture)
        yield self.record(
            (number, image.path), input_img=(image,), facts=facts, patient=patient,
            provenance={"facts": {"by": self.name, "from": "annotations"}},
        )  # fmt: skip

    def _regions(
        self, image: Any, picture: MetaTensor, size: tuple[int, int]
    ) -> tuple[list[Box], np.ndarray | None]:
        """Boxes and label map on the picture; no map where an annotation is a box alone, which it would lack.

        Args:
            size: (H, W) of the file, as it is stored.

        Raises:
            InvalidRecord: an annotation that does not fit.
        """
        boxes: list[Box] = []
        drawn = np.zeros(size, np.uint8)
        places = {number: place for place, number in enumerate(self.categories, 1)}
        outlined = True
        for each in self.annotations.get(image, []):
            category = each.get("category_id")
            if category not in places:
                raise InvalidRecord(
                    "bad-label", "an annotation has a category that is not listed, expected one."
                )
            label = self.categories[category]
            outline = each.get("segmentation")
            mask = draw(outline, size) if outline else None
            if mask is None:
                outlined = False
            else:
                drawn[mask] = places[category]
            edges = each.get("bbox") or (_edges(mask) if mask is not None and mask.any() else None)
            boxes.append(_box(edges, label, picture, size))
        if not outlined or not boxes:
            return boxes, None
        seen = as_shown(torch.from_numpy(drawn)[None], picture.meta.get("source") or {})
        flat = MetaTensor(seen, meta={"kind": "image"})
        return boxes, labels_onto(flat, picture, list(range(1, len(places) + 1))).numpy()


def _box(edges: Any, label: str, picture: MetaTensor, size: tuple[int, int]) -> Box:
    good = isinstance(edges, Sequence) and len(edges) == 4
    numbers = [float(e) for e in edges if isinstance(e, int | float)] if good else []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers[2:]) <= 0:
        raise InvalidRecord("bad-label", "a box is not [x, y, width, height] with a size, expected that.")
    x, y, width, height = numbers
    if x < -1 or y < -1 or x + width > size[1] + 1 or y + height > size[0] + 1:
        raise InvalidRecord(
            "bad-label", f"a box leaves the image of {size[1]} x {size[0]} pixels, expected one inside."
        )
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, size[1]), min(y + height, size[0])
    corners = np.array([[top - 0.5, left - 0.5, 0, 1], [bottom - 0.5, right - 0.5, 0, 1]]).T
    source = picture.meta.get("source") or {}
    turn = shown_from_stored(source, size[::-1] if source.get("transposed") else size)
    (top, bottom), (left, right) = (np.sort((turn @ corners)[:2]) + 0.5).tolist()
    found = region_from_source(picture, left, top, right, bottom, label)
    return Box(label, found.left, found.top, found.right, found.bottom)


def _edges(mask: np.ndarray) -> list[float]:
    rows, columns = np.nonzero(mask)
    left, top = float(columns.min()), float(rows.min())
    return [left, top, float(columns.max()) + 1 - left, float(rows.max()) + 1 - top]


def draw(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """A COCO segmentation as (H, W) bool: polygons [[x, y, x, y, ...]], or run lengths.

    Several polygons are joined; holes are for run lengths, or a polygon that leads to its hole and back.

    Raises:
        InvalidRecord: it is neither.
    """
    if isinstance(outline, Mapping):
        return _run_lengths(outline, size)
    canvas = np.zeros(size, bool)
    for polygon in outline if isinstance(outline, list) else [None]:
        numbers = polygon if isinstance(polygon, list) else []
        good = len(numbers) >= 6 and len(numbers) % 2 == 0
        if not good or not all(isinstance(n, int | float) and abs(n) < 1e9 for n in numbers):
            raise InvalidRecord("bad-label", "a polygon has no three points of two numbers, expected them.")
        _fill(canvas, np.array(numbers, np.float64).reshape(-1, 2))
    return canvas


def _turned_by_exif(path: Path) -> bool:
    if is_dicom(path):  # some open as TIFF too
        return False
    try:
        with Image.open(path) as file:
            return int(file.getexif().get(ORIENTATION, 1)) != 1
    except (OSError, ValueError, Image.DecompressionBombError):  # no picture: reading says so
        return False


def _fill(canvas: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels whose centres lie in a polygon; a centre on an outline belongs to what lies right of it.

    By the rows that its edges cross: asking at each pixel, as `skimage.draw.polygon` does, takes far longer
    for the fine outlines of large pictures.

    Args:
        canvas: (H, W) bool.
        points: (N, 2), x and y from the corner of the first pixel, whose centre is (0.5, 0.5).
    """
    limits = np.array(canvas.shape[::-1])
    (left, top), (right, bottom) = (
        np.clip(np.ceil(edge - 0.5), 0, limits).astype(int) for edge in (points.min(0), points.max(0))
    )
    crossed = np.zeros((bottom - top, right - left + 1), bool)
    for pair in zip(points, np.roll(points, -1, axis=0), strict=True):
        (x, y), (x2, y2) = sorted(pair, key=lambda point: tuple(point[::-1]))  # neighbours cross it alike
        start, stop = np.clip(np.ceil(np.array([y, y2]) - 0.5), top, bottom).astype(int)
        rows = np.arange(start, stop)
        columns = np.ceil(x + (rows + 0.5 - y) * ((x2 - x) / (y2 - y or 1)) - 0.5)
        crossed[rows - top, np.clip(columns, left, right).astype(int) - left] ^= True
    canvas[top:bottom, left:right] |= np.logical_xor.accumulate(crossed, axis=1)[:, :-1]


def _run_lengths(outline: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Runs of 0 and 1 in turn, down the columns; as a list, or as COCO's text of 6-bit pieces."""
    told = outline.get("counts")
    listed: list[Any] = _unpacked(told) if isinstance(told, str) else told if isinstance(told, list) else []
    counts = [n for n in listed if isinstance(n, int) and n >= 0]
    whole = len(counts) == len(listed) and sum(counts) == size[0] * size[1]
    if not whole or list(outline.get("size") or []) != list(size):
        raise InvalidRecord(
            "bad-label", f"run lengths do not fill {size[0]} x {size[1]} pixels, expected that."
        )
    runs = np.repeat(np.arange(len(counts)) % 2, counts)
    return runs.reshape(size[::-1]).T.astype(bool)


def _unpacked(text: str) -> list[int]:
    """Numbers of COCO's text: 5 bits and a flag in each letter from '0'; from the third on differences."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        piece = ord(letter) - 48
        if not 0 <= piece < 64:
            return []
        value |= (piece & 31) << shift
        shift += 5
        if not piece & 32:
            if piece & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts
