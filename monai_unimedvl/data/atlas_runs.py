# SPDX-License-Identifier: Apache-2.0
"""Neighbouring slices of one atlas volume as one prompt, and what may be asked of them together.

A region or a tumour is there if any of the slices shows it; contrast, plane and part of the body are those
of every slice. The words are those of `atlas_tasks`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from monai_unimedvl.data.atlas_pictures import Picture
from monai_unimedvl.data.atlas_tasks import YES_AT

__all__ = ["Asked", "Run", "runs"]

EVERYWHERE = ("contrast", "plane", "body")


@dataclass(frozen=True)
class Asked:
    """A question about all slices of a run: its key in `QUESTIONS`, and the answer."""

    key: str
    answer: str


@dataclass(frozen=True)
class Run:
    """Neighbouring slices of one volume in one plane, in order, and what is asked of them."""

    slices: tuple[Picture, ...]
    asked: tuple[Asked, ...]


def runs(
    pictures: Sequence[Picture], sections: Sequence[str], *, length: int = 9, stride: int = 2
) -> Iterator[Run]:
    """The runs of `length` slices at the usual distance of their volume, mirrored copies left out.

    Args:
        sections: of the pictures, whose position is in mm, or the number of a slice where no mm are known.
        stride: slices from the beginning of one run to that of the next.
    """
    volumes: dict[tuple[str, ...], list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.section in sections and picture.plane and not picture.facts.get("mirrored"):
            volumes[picture.section, picture.source, picture.plane].append(picture)
    for _, found in sorted(volumes.items()):
        found.sort(key=lambda picture: picture.position)
        gaps = np.diff([picture.position for picture in found])
        step = Counter(gaps.tolist()).most_common(1)[0][0] if len(gaps) else 0
        for first in range(0, len(found) - length + 1, stride):
            window = found[first : first + length]
            if np.allclose(gaps[first : first + length - 1], step):
                yield Run(tuple(window), tuple(_asked(window)))


def _asked(window: Sequence[Picture]) -> Iterator[Asked]:
    first = window[0]
    for key, answer in zip(EVERYWHERE, (first.contrast, first.plane, str(first.facts["body"])), strict=True):
        yield Asked(key, answer)
    areas = [picture.facts["areas"] for picture in window if isinstance(picture.facts.get("areas"), dict)]
    if len(areas) == len(window):
        for region in areas[0]:  # type: ignore[attr-defined]
            largest = max(each[region] for each in areas)  # type: ignore[index]
            if largest == 0 or largest >= YES_AT:
                yield Asked(f"region: {region}", "yes" if largest else "no")
    if "tumour" in first.facts:
        there = any(picture.facts["tumour"] for picture in window)
        yield Asked("tumour", "yes" if there else "no")
