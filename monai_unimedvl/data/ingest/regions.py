# SPDX-License-Identifier: Apache-2.0
"""A label map on a picture -> facts: which labels are there, where, how many pieces, how large in mm.

H rows   W columns   K labels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_unimedvl.data.facts import Box
from monai_unimedvl.packages import needed

LEAST = 8  # pixels of a piece that counts as one
MOST = 64  # boxes of one label; more are counted, not listed


def facts_of(
    mask: np.ndarray, labels: Sequence[str], spacing: Sequence[float] | None = None,
    instances: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a label map says: `labels`, `absent`, `boxes` and `measurements`, see `facts`.

    Args:
        mask: (H, W) of 0..K, n the n-th label.
        spacing: mm from row to row and from column to column; without it nothing is said in mm.
        instances: (H, W), a number for each piece of label 1, where the pieces are known; else those that
            hang together.
    """
    known: dict[str, Any] = {"labels": [], "absent": [], "boxes": [], "measurements": []}
    for value, label in enumerate(labels, 1):
        whole = mask == value
        pixels = int(whole.sum())
        if pixels == 0:
            known["absent"].append(label)
        if pixels < LEAST:
            continue  # a few pixels at a border are neither there nor not
        known["labels"].append(label)
        pieces = _pieces(whole, instances if value == 1 else None)
        known["boxes"] += [
            Box(label, left, top, right, bottom).to_json() for left, top, right, bottom, _ in pieces[:MOST]
        ]
        known["measurements"].append({"name": "count", "value": len(pieces), "unit": "", "of": label})
        share = round(100 * pixels / mask.size, 2)
        known["measurements"].append({"name": "share of the image", "value": share, "unit": "%", "of": label})
        if spacing is not None:
            square = float(spacing[0]) * float(spacing[1])
            area = {"name": "area", "value": round(pixels * square, 1), "unit": "mm2", "of": label}
            widest = max(_longest(piece, spacing) for *_, piece in pieces)
            diameter = {"name": "diameter", "value": round(widest, 1), "unit": "mm", "of": label}
            known["measurements"] += [area, diameter]
    return {name: value for name, value in known.items() if value}


def side_of(mask: np.ndarray, patient_left: str) -> str:
    """The patient's side that a region lies on: "left", "right", "both", or "" where that is not known.

    Args:
        mask: (H, W) bool.
        patient_left: where the patient's left is on the picture.
    """
    if patient_left not in ("left", "right") or not mask.any():
        return ""
    half = mask.shape[1] / 2
    columns = np.nonzero(mask.any(0))[0]
    shares = mask[:, : int(half)].sum() / mask.sum()
    if 0.2 < shares < 0.8 or (columns.min() < 0.4 * mask.shape[1] and columns.max() > 0.6 * mask.shape[1]):
        return "both"
    on_left_of_picture = shares >= 0.5
    return "left" if on_left_of_picture == (patient_left == "left") else "right"


def _pieces(whole: np.ndarray, instances: np.ndarray | None) -> list[tuple[int, int, int, int, np.ndarray]]:
    """(left, top, right, bottom, outline) of each piece, the largest first."""
    measure = needed("skimage.measure", "A mask", "data")
    numbered = measure.label(whole) if instances is None else np.where(whole, instances, 0)
    pieces = []
    for region in measure.regionprops(numbered):
        if region.area < LEAST:
            continue
        top, left, bottom, right = region.bbox
        pieces.append((float(region.area), (left, top, right, bottom, region.coords)))
    pieces.sort(key=lambda piece: (-piece[0], piece[1][:4]))
    if not pieces:  # crumbs alone: one box around them all
        rows, columns = np.nonzero(whole)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return [(*box, np.stack([rows, columns], 1))]
    return [piece for _, piece in pieces]


def _longest(coordinates: np.ndarray, spacing: Sequence[float]) -> float:
    """mm between the two pixels of a piece that lie farthest apart, over 36 directions, edges included."""
    points = coordinates * np.asarray(spacing, float)  # (P, 2) mm
    angles = np.arange(36) * np.pi / 36
    along = points @ np.stack([np.sin(angles), np.cos(angles)])  # (P, 36)
    return float((along.max(0) - along.min(0)).max() + min(spacing))


def check_labels(values: Any, name: str) -> dict[str, int]:
    """Name -> value of the labels of masks, as labels.json says it; -1 stands for "instances".

    Raises:
        ValueError: it is none.
    """
    good = isinstance(values, Mapping) and bool(values)
    numbers = {
        str(label): -1 if value == "instances" else value for label, value in (values.items() if good else ())
    }
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in numbers.values())
    if not numbers or not whole or 0 in numbers.values() or (-1 in numbers.values() and len(numbers) > 1):
        raise ValueError(
            f"{name} is no list of labels, expected name -> value in the masks such as "
            '{"liver": 1, "tumour": 2}, or {"nuclei": "instances"} alone: mend it.'
        )
    if len(set(numbers.values())) < len(numbers):
        raise ValueError(f"{name} gives one value to two labels, expected one of its own for each: mend it.")
    return numbers
