# SPDX-License-Identifier: Apache-2.0
"""Arms, and settings of one network, held against each other on the same items.

The score of an item is its mean over the seeds that both arms have run; the interval of a difference is a
bootstrap over the images that items belong to, and from three seeds on Student's over the seeds. p is of sign
flips by image, adjusted by Holm for what stands together: the rows of a question, or the cells of a table.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from monai_unimedvl.evaluation.intervals import Difference, compare, holm, interval
from monai_unimedvl.evaluation.tables import number
from science import plan
from science.plan import Arm, Question

RESAMPLES = 2000
SEEDS = 3  # at least, for an interval over seeds
LABELS = {"test": "slab", "test_subject": "subject"}
Column = tuple[str, str]  # place, metric
Cell = tuple[str, Column]  # of a setting


@dataclass(frozen=True)
class Scores:
    """One arm's scores of one metric: of each item over the seeds, of each seed over the items."""

    items: dict[str, float]
    clusters: dict[str, str]
    seeds: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Line:
    """A pair of arms on one metric of one section; `volumes` counts the items of each."""

    place: str
    metric: str
    first: str
    second: str
    difference: Difference
    by_seed: list[float]
    baselines: dict[str, float]
    volumes: Mapping[str, int]
    adjusted: float = 1.0  # p, among all lines of the question

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the differences of seeds; None with fewer than three."""
        count = len(self.by_seed)
        if count < SEEDS:
            return None
        half = float(student.ppf(0.975, count - 1)) * stdev(self.by_seed) / count**0.5
        return mean(self.by_seed) - half, mean(self.by_seed) + half

    @property
    def verdict(self) -> str:
        """Which side is better, where chance over items is an unlikely cause and all seeds agree."""
        signs = {np.sign(round(x, 9)) for x in self.by_seed}
        if self.adjusted >= 0.05 or len(signs) != 1:
            return "none shown"
        return "second" if self.difference.value > 0 else "first"

    @property
    def told_by_seeds(self) -> bool:
        """Student's interval over the seeds is there and leaves out zero."""
        return self.over_seeds is not None and self.over_seeds[0] * self.over_seeds[1] > 0


@dataclass(frozen=True)
class Shift:
    """A setting against another, by the same network on the same items."""

    difference: Difference
    adjusted: float = 1.0  # p, among all shifts of the table
    by_volume: float = 1.0  # p with whole volumes in place of images, not adjusted


@dataclass(frozen=True)
class Curve:
    """Places that were measured at the same settings: for each setting and column its shift to the base.

    `twins` holds, for each ending, the settings with it against those of the same name with another ending;
    and, under "every setting", all of them against the guess that looks at no image.
    """

    found: dict[str, Any]
    names: tuple[str, ...]
    columns: list[Column]
    base: str
    shifts: dict[Cell, Shift]
    twins: dict[tuple[str, str], dict[Cell, Shift]]


class Results:
    """The committed results of a folder, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[tuple[str, int], dict[str, Any] | None] = {}
        self._lines: dict[str, list[Line]] = {}

    def of(self, arm: Arm, seeds: int) -> dict[int, dict[str, Any]]:
        """seed -> result, of what has run."""
        for seed in range(seeds):
            if (arm.name, seed) not in self._read:
                self._read[arm.name, seed] = plan.result(arm, seed, self.folder)
        found = {seed: self._read[arm.name, seed] for seed in range(seeds)}
        return {seed: one for seed, one in found.items() if one is not None}

    def scores(self, question: Question, name: str, place: str, metric: str) -> Scores | None:
        """The scores of an arm, or of one way of asking it ("planned/own plan"); None where it has none."""
        arm, _, setting = name.partition("/")
        by_seed: dict[int, dict[str, float]] = {}
        clusters: dict[str, str] = {}
        for seed, found in self.of(question.arms[arm], question.seeds).items():
            settings = found["scores"].get(place, {})
            chosen = settings.get(setting) if setting else next(iter(settings.values()), None)
            if not chosen or metric not in chosen:
                continue
            listed = read_items(self.folder, found.get("more_items", {}).get(place, found["items"]))
            rows = listed.get(place) or listed[place.replace("pd-to-t2", "t1-to-t2")]
            clusters |= dict(rows)
            values = zip(rows, chosen[metric], strict=True)
            by_seed[seed] = {name: float(x) for (name, _), x in values if x is not None}
        if not by_seed:
            return None
        known = set.intersection(*(set(one) for one in by_seed.values()))
        items = {name: mean(one[name] for one in by_seed.values()) for name in sorted(known)}
        return Scores(items, clusters, by_seed) if items else None

    def lines(self, question: Question) -> list[Line]:
        """Every pair on every metric and section that both have."""
        if question.letter not in self._lines:
            found = []
            for task, metric in question.metrics:
                for section in LABELS:
                    for first, second in question.pairs:
                        line = self._line(question, first, second, f"{section}/{task}", metric)
                        found += [line] if line else []
            adjusted = holm({str(n): line.difference.p for n, line in enumerate(found)})
            self._lines[question.letter] = [
                replace(line, adjusted=adjusted[str(n)]) for n, line in enumerate(found)
            ]
        return self._lines[question.letter]

    def _line(self, question: Question, first: str, second: str, place: str, metric: str) -> Line | None:
        a, b = (self.scores(question, name, place, metric) for name in (first, second))
        if a is None or b is None:
            return None
        seeds = sorted(a.seeds.keys() & b.seeds.keys())
        if not seeds:
            return None
        known = [n for n in a.items if all(n in one.seeds[seed] for one in (a, b) for seed in seeds)]
        sides = [{n: mean(one.seeds[seed][n] for seed in seeds) for n in known} for one in (a, b)]
        clusters = {n: a.clusters[n] for n in known}
        difference = compare(sides[0], sides[1], clusters=clusters, resamples=RESAMPLES)
        by_seed = [mean(b.seeds[s][n] - a.seeds[s][n] for n in known) for s in seeds]
        arm = question.arms[second.split("/")[0]]
        about = next(iter(self.of(arm, question.seeds).values()))["baselines"].get(f"{place}/{metric}", {})
        return Line(
            place, metric, first, second, difference, by_seed, about, volumes(clusters.values())
        )  # fmt: skip

    def curves(self, question: Question) -> list[Curve]:
        """Of a question without pairs: its settings against the reference, and against their twins."""
        made = []
        for arm in question.arms.values():
            for found in self.of(arm, 1).values():
                groups: dict[tuple[str, ...], list[Column]] = {}
                for place, settings in found["scores"].items():
                    for metric in next(iter(settings.values())):
                        if any(any(one[metric]) for one in settings.values()):
                            groups.setdefault(tuple(settings), []).append((place, metric))
                made += [self._curve(question, found, *group) for group in groups.items()]
        return made

    def _curve(
        self, question: Question, found: dict[str, Any], names: tuple[str, ...], columns: list[Column]
    ) -> Curve:
        listed = question.values.get("references", ())
        base = next((name for name in listed if name in names), names[0])
        shifts = {
            (name, c): self.shift(found, *c, base, name) for name in names if name != base for c in columns
        }
        twins = {}
        for ending, other in question.values.get("against", {}).items():
            pairs = [(name, name.removesuffix(ending) + other) for name in names if name.endswith(ending)]
            twins[ending, other] = judged({
                (name, c): self.shift(found, *c, twin, name)
                for name, twin in pairs if twin in names for c in columns
            })  # fmt: skip
        if (guess := question.values.get("guess")) in names:
            twins["every setting", guess] = judged({
                (name, c): self.shift(found, *c, guess, name)
                for name in names if name != guess for c in columns
            })  # fmt: skip
        return Curve(found, names, columns, base, judged(shifts), twins)

    def shift(self, found: dict[str, Any], place: str, metric: str, base: str, name: str) -> Shift:
        """A setting less another, paired by item."""
        rows = read_items(self.folder, found["items"])[place]
        sides = []
        for setting in (base, name):
            values = zip(rows, found["scores"][place][setting][metric], strict=True)
            sides.append({item: float(x) for (item, _), x in values if x is not None})
        known = sides[0].keys() & sides[1].keys()
        a, b = ({item: side[item] for item in known} for side in sides)
        images = {item: cluster for item, cluster in rows if item in known}
        whole = {item: volume(cluster) for item, cluster in images.items()}
        told = compare(a, b, clusters=images, resamples=RESAMPLES)
        return Shift(told, told.p, compare(a, b, clusters=whole, resamples=RESAMPLES).p)

    def point(
        self, found: dict[str, Any], place: str, setting: str, metric: str
    ) -> tuple[float, float, float]:
        """Mean, low and high of a setting."""
        rows = read_items(self.folder, found["items"])[place]
        values = found["scores"][place][setting][metric]
        known = [(x, c) for x, (_, c) in zip(values, rows, strict=True) if x is not None]
        low, high = interval([x for x, _ in known], clusters=[c for _, c in known], resamples=RESAMPLES)
        return mean(x for x, _ in known), low, high


def judged(shifts: Mapping[Cell, Shift]) -> dict[Cell, Shift]:
    """The same, with p adjusted for their number."""
    keys = list(shifts)
    adjusted = holm({str(n): shifts[key].difference.p for n, key in enumerate(keys)})
    return {key: replace(shifts[key], adjusted=adjusted[str(n)]) for n, key in enumerate(keys)}


@cache
def read_items(folder: Path, digest: str) -> dict[str, list[list[str]]]:
    """place -> [id, picture] of each item."""
    found: dict[str, list[list[str]]] = json.loads((folder / f"items-{digest}.json").read_text("utf8"))
    return found


def volume(picture: str) -> str:
    """The volume that a picture is a slice of, or the image that it is cut from: its name begins with it."""
    return re.sub(r"_(axial|coronal|sagittal)$", "", picture.split("/")[0])


def volumes(pictures: Iterable[str]) -> Counter[str]:
    """How many items each volume gives."""
    return Counter(volume(picture) for picture in pictures)


def counts(listed: Sequence[Sequence[str]]) -> str:
    """Of rows [id, picture]: "48 / 48 / 12", items, images and volumes."""
    pictures = [picture for _, picture in listed]
    return f"{len(pictures)} / {len(set(pictures))} / {len(volumes(pictures))}"


def place_words(place: str) -> str:
    """In words: "sr4, slab"."""
    section, task = place.split("/")
    return f"{task}, {LABELS[section]}" if section in LABELS else section


def heading(column: Column) -> str:
    """In words: "sr4, slab: PSNR"."""
    return f"{place_words(column[0])}: {column[1]}"


def signed(metric: str, value: float) -> str:
    """A difference with its sign."""
    text = number(metric, value)
    return text if text.startswith("-") else f"+{text}"
