# SPDX-License-Identifier: Apache-2.0
"""What needs no model: the trivial answers and images that every score is printed beside.

All are fitted on training items only; a fitted baseline takes an item and gives what it would have drawn.
  K labels without background   H, W pixels
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation.image import dice, paint, standardised
from monai_unimedvl.evaluation.text import token_f1

Item = Mapping[str, Any]  # as `AtlasDataset` gives them
Draw = Callable[[Item], Tensor]  # an item -> the image (3, H, W) that a baseline would have drawn
STAINS = ("h-to-he", "h-to-ihc")
LEVELS = 64  # grey levels of a lookup table: fine enough for 8-bit scans, coarse enough to be filled


@dataclass(frozen=True)
class Beside:
    """What stands beside the drawings of N items of a task.

    Args:
        truth: (N, 3, H, W). drawn: name of a baseline -> (N, 3, H, W).
        scores: name of a baseline -> metric -> (N,). ceiling: metric -> (N,) of the best that can be had.
    """

    truth: Tensor
    drawn: Mapping[str, Tensor]
    scores: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    ceiling: Mapping[str, Tensor] = field(default_factory=dict)


def fit(task: str, items: Sequence[Item]) -> dict[str, Draw]:
    """Name -> baseline of a drawing task; those that learn are left out where there are no training items."""
    if task == "sr4":
        return {"bicubic": lambda item: item["baseline"]}
    if task == "text-to-image":
        if not items:
            return {}
        return {"nearest training image": nearest_words(items), "mean image": mean_image(items, kind_of)}
    if task in LEGENDS:
        legend = LEGENDS[task]
        maps: dict[str, Draw] = {}
        if len(legend) > 1 and items:
            maps = {
                "lookup": label_lookup(items, len(legend)), "usual place": label_place(items, len(legend)),
                "nearest slice": nearest_slice(items),
            }  # fmt: skip
        if task == "seg-tissue" and items and optional_import("skimage.filters")[1]:
            maps["threshold"] = otsu(items, len(legend))
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


def kind_of(item: Item) -> str:
    """Key: contrast and plane of an item."""
    return f"{item['contrast']} {item['plane']}"


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


def nearest_slice(items: Sequence[Item]) -> Callable[[Item], Tensor]:
    """The mask of the training picture that correlates most with the one given: item -> labels (H, W)"""
    bank = standardised(torch.stack([shown(item) for item in items]))  # (M, H*W)

    def copy(item: Item) -> Tensor:
        nearest = int((bank @ standardised(shown(item).unsqueeze(0))[0]).argmax())
        mask: Tensor = items[nearest]["mask"].long()
        return mask

    return copy


def otsu(items: Iterable[Item], count: int) -> Callable[[Item], Tensor]:
    """Background and `count` ranges of grey by Otsu's thresholds of each picture: item -> labels (H, W)

    No atlas and no place: training only says, by contrast, which range is called what.
    """
    cut = optional_import("skimage.filters", name="threshold_multiotsu")[0]

    def ranges(item: Item) -> Tensor:
        grey = _grey(item)
        if len(grey.unique()) <= count:  # too few greys to be cut
            return torch.zeros_like(grey)
        edges = cut(grey.numpy(), classes=count + 1, nbins=LEVELS)
        return torch.from_numpy(np.digitize(grey.numpy(), edges, right=True))

    sums = Keyed(lambda item: str(item["contrast"]))
    for item in items:
        cells = ranges(item).flatten() * (count + 1) + item["mask"].long().flatten()
        sums.add(item, torch.bincount(cells, minlength=(count + 1) ** 2).view(count + 1, count + 1))

    def name(item: Item) -> Tensor:
        seen = sums.of(item)  # (ranges, labels)
        orders = list(permutations(range(1, count + 1)))
        best = max(orders, key=lambda order: int(sum(seen[k + 1, label] for k, label in enumerate(order))))
        return torch.tensor([0, *best])[ranges(item)]

    return name


def words_of(item: Item) -> str:
    """The words of a prompt."""
    return str(item["turns"][0].parts[-1])


def nearest_words(items: Sequence[Item]) -> Draw:
    """The training image whose words are most alike (token F1), of several the first: item -> (3, H, W)"""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(words_of(item), item)

    @cache
    def nearest(words: str) -> str:
        return max(first, key=lambda known: token_f1(words, known))

    return lambda item: first[nearest(words_of(item))]["truth"]


def mean_image(items: Iterable[Item], key: Callable[[Item], str] = plane_of) -> Callable[[Item], Tensor]:
    """The mean true image, by plane or another key: item -> (3, H, W)"""
    sums = Keyed(key)
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
