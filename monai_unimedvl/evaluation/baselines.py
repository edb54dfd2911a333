# SPDX-License-Identifier: Apache-2.0
"""What needs no model: the trivial answers and images that every score is printed beside.

All are fitted on training items only; a fitted baseline takes an item and gives what it would have drawn.
  K labels without background   H, W pixels
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.image import dice, paint

Item = Mapping[str, Any]  # as `AtlasDataset` gives them
Draw = Callable[[Item], Tensor]  # an item -> the image (3, H, W) that a baseline would have drawn
STAINS = ("h-to-he", "h-to-ihc")
LEVELS = 64  # grey levels of a lookup table: fine enough for 8-bit scans, coarse enough to be filled


def fit(task: str, items: Sequence[Item]) -> dict[str, Draw]:
    """Name -> baseline of a drawing task; those that learn are left out where there are no training items."""
    if task == "sr4":
        return {"bicubic": lambda item: item["baseline"]}
    if task in LEGENDS:
        legend = LEGENDS[task]
        maps: dict[str, Draw] = {}
        if len(legend) > 1 and items:
            maps = {
                "lookup": label_lookup(items, len(legend)), "usual place": label_place(items, len(legend)),
            }  # fmt: skip
        if len(legend) == 1:
            maps["empty mask"] = lambda item: torch.zeros(item["truth"].shape[1:], dtype=torch.long)
            maps |= {"threshold": threshold(items)} if items else {}
        return {name: _painted(labels, legend) for name, labels in maps.items()}
    drawn: dict[str, Draw] = {"identity": shown}
    if items:
        drawn["mean"] = mean_image(items)
        if task in STAINS:
            drawn["linear colours"] = colour_map(items)
        else:
            drawn["lookup"] = grey_lookup(items)
    return drawn


def shown(item: Item) -> Tensor:
    """The image that the user gives, (3, H, W)."""
    return next(part for part in item["turns"][0].parts if isinstance(part, Tensor))


def majority(items: Iterable[Item], key: Callable[[Item], str]) -> dict[str, str]:
    """For each key the most frequent true text; of equally frequent ones the first in the alphabet."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[key(item)][str(item["truth"])] += 1
    return {name: min(found, key=lambda text: (-found[text], text)) for name, found in counts.items()}


class Keyed:
    """A table for each key of an item, and for keys not seen in training the table of all items together."""

    def __init__(self, key: Callable[[Item], str]) -> None:
        self.key = key
        self.sums: dict[str, Tensor] = {}

    def add(self, item: Item, values: Tensor) -> None:
        """Add `values` to the sums of the item's key, and of all items."""
        for name in (f"={self.key(item)}", "all"):
            self.sums[name] = self.sums[name] + values if name in self.sums else values

    def of(self, item: Item) -> Tensor:
        """The sums for an item."""
        found = self.sums.get(f"={self.key(item)}")
        return self.sums["all"] if found is None else found


def source_of(item: Item) -> str:
    """Key: the scan or template an item is from."""
    return str(item["source"])


def plane_of(item: Item) -> str:
    """Key: the plane of an item."""
    return str(item["plane"])


def label_lookup(items: Iterable[Item], count: int) -> Callable[[Item], Tensor]:
    """Each pixel gets the label most frequent at its grey level, by source: item -> labels (H, W)"""
    sums = Keyed(source_of)
    for item in items:
        cells = _grey(item).flatten() * (count + 1) + item["mask"].long().flatten()
        sums.add(item, torch.bincount(cells, minlength=LEVELS * (count + 1)).view(LEVELS, count + 1))
    return lambda item: sums.of(item).argmax(1)[_grey(item)]


def label_place(items: Iterable[Item], count: int) -> Callable[[Item], Tensor]:
    """Each pixel gets the label most frequent at its place, by plane: item -> labels (H, W)"""
    sums = Keyed(plane_of)
    for item in items:
        sums.add(item, torch.nn.functional.one_hot(item["mask"].long(), count + 1))
    return lambda item: sums.of(item).argmax(-1)


def threshold(items: Iterable[Item]) -> Callable[[Item], Tensor]:
    """All pixels above the grey level of the best mean Dice in training, by contrast: item -> mask (H, W)"""
    sums = Keyed(lambda item: str(item["contrast"]))
    levels = torch.arange(LEVELS).view(-1, 1, 1)
    for item in items:
        masks = (_grey(item) >= levels).long()  # (LEVELS, H, W)
        truth = (item["mask"] > 0).long().expand_as(masks)
        sums.add(item, dice(masks, truth, 1)[:, 0].nan_to_num(0.0))
    return lambda item: (_grey(item) >= sums.of(item).argmax()).long()


def mean_image(items: Iterable[Item]) -> Callable[[Item], Tensor]:
    """The mean true image, by plane: item -> (3, H, W)"""
    sums = Keyed(plane_of)
    for item in items:
        truth = item["truth"].double()
        sums.add(item, torch.cat([truth, torch.ones_like(truth[:1])]))
    return lambda item: (sums.of(item)[:3] / sums.of(item)[3:]).float()


def grey_lookup(items: Iterable[Item]) -> Callable[[Item], Tensor]:
    """Each grey level becomes the mean it had in the true images: item -> (3, H, W)

    Levels never seen take the mean of the nearest level that was.
    """
    sums = torch.zeros(LEVELS, 2, dtype=torch.float64)
    for item in items:
        level = _grey(item).flatten()
        sums[:, 0] += torch.bincount(level, minlength=LEVELS)
        sums[:, 1] += torch.bincount(level, item["truth"].mean(0).flatten().double(), minlength=LEVELS)
    seen = sums[:, 0].nonzero()[:, 0]
    nearest = seen[(torch.arange(LEVELS).view(-1, 1) - seen).abs().argmin(1)]
    table = (sums[nearest, 1] / sums[nearest, 0]).float()  # (LEVELS,)
    return lambda item: table[_grey(item)].expand(3, -1, -1)


def colour_map(items: Iterable[Item]) -> Callable[[Item], Tensor]:
    """The affine map of colours with the least squared error in training: item -> (3, H, W) in [0, 1]"""
    square, cross = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for item in items:
        rows = _with_one(shown(item))
        square += rows.T @ rows
        cross += rows.T @ item["truth"].double().flatten(1).T
    matrix = torch.linalg.lstsq(square, cross, driver="gelsd").solution  # (4, 3)

    def apply(item: Item) -> Tensor:
        image = shown(item)
        return (_with_one(image) @ matrix).T.reshape(image.shape).float().clamp(0, 1)

    return apply


def _painted(labels: Draw, legend: Mapping[str, tuple[int, int, int]]) -> Draw:
    """A baseline that gives label maps -> one that gives them in the colours of the legend."""
    return lambda item: paint(labels(item).unsqueeze(0), legend)[0]


def _grey(item: Item) -> Tensor:
    """Grey level of each pixel of the given image, (H, W) in 0..LEVELS-1."""
    return (shown(item).mean(0) * LEVELS).long().clamp(0, LEVELS - 1)


def _with_one(image: Tensor) -> Tensor:
    """(3, H, W) -> (H*W, 4): colours and a constant."""
    rows = image.double().flatten(1).T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
