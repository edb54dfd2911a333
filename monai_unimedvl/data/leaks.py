# SPDX-License-Identifier: Apache-2.0
"""How far the splits of a corpus are apart: what they share, and how near their pictures come.

    unimedvl data leaks shards/

A shared patient, study or picture, shown or drawn, is a leak. Alike pictures may be one: slices of one volume
at random places come to 0.99 of each other, so a score on such a test tells what was remembered. Nearness is
the correlation of 12 x 12 thumbnails within one modality.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.data.prints import THUMB, telling_prints, thumbnails
from monai_unimedvl.data.record import Record, Reject

NEAR = 0.98  # correlation that counts as near
QUERIES = 2000  # pictures of a split and modality that are looked up at most, evenly chosen
BLOCK = 50_000  # training pictures that are compared at once
SHOWN = 20  # examples of each leak


@dataclass
class LeakReport:
    """What `leak_report` found.

    Args:
        records: by split.
        shared: "patient", "study", "picture" -> how many are in more than one split.
        examples: of these: {"what", "splits", "records"}; the pseudonyms and pictures are not named.
        nearest: (split, modality) rows: n, median, p95, max, share_near, and the nearest pair of ids.
        slabs: patients whose slices were cut into slabs, since their dataset has no other; not `shared`.
    """

    records: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    nearest: list[dict[str, Any]] = field(default_factory=list)
    slabs: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is shared."""
        return not any(self.shared.values())

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "records": self.records, "shared": self.shared, "examples": self.examples,
            "nearest": self.nearest, "slabs": self.slabs, "near": NEAR, "thumbnail": THUMB,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people, as Markdown."""
        shared = ", ".join(f"{count} {what}" for what, count in self.shared.items())
        lines = [f"In more than one split: {shared}."]
        if self.slabs:
            lines.append(f"Cut into slabs with a guard between, so in several splits: {self.slabs} patients.")
        for each in self.examples:
            lines.append(
                f"- a {each['what']} is in {' and '.join(each['splits'])}: {', '.join(each['records'])}"
            )
        if self.nearest:
            lines += ["", f"| split | modality | pictures | median | 95 % | max | above {NEAR} |"]
            lines.append("|---|---|---|---|---|---|---|")
        for row in self.nearest:
            lines.append(
                f"| {row['split']} | {row['modality']} | {row['n']} | {row['median']:.3f} | {row['p95']:.3f} "
                f"| {row['max']:.3f} | {100 * row['share_near']:.0f} % |"
            )
        if self.nearest:
            lines.append(f"Correlation of the nearest training picture, {THUMB} x {THUMB} thumbnails.")
        return lines


def leak_report(records: Iterable[Record | Reject], root: str | Path | None = None) -> LeakReport:
    """What the splits share, and how near the pictures of val and test come to those of train.

    Args:
        records: with a split each; rejects are left out.
        root: folder of their images, where they are not embedded.

    Raises:
        InvalidRecord: a picture that cannot be read.
    """
    return leaks_of(leak_row(each, root) for each in records if isinstance(each, Record))


def leak_row(record: Record, root: str | Path | None = None) -> dict[str, Any]:
    """What the report needs of a record, as JSON.

    Raises:
        InvalidRecord: a picture that cannot be read.
    """
    seen = [[each.pixels, each.thumb] for each in telling_prints(record, root)]
    named = {name: getattr(record, name) for name in ("id", "split", "modality", "patient", "study")}
    return {**named, "pictures": seen, "slab": bool(record.facts.get("slab"))}


def leaks_of(rows: Iterable[Mapping[str, Any]]) -> LeakReport:
    """The report of rows that `leak_row` made."""
    report = LeakReport()
    slabs: set[str] = set()
    seen: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (what, key) -> split -> a record
    held: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (split, modality) -> thumb -> a record
    for row in rows:
        split = str(row["split"])
        report.records[split or "none"] = report.records.get(split or "none", 0) + 1
        keys = [(what, row[what]) for what in ("patient", "study") if row[what]]
        if row["slab"]:  # cut up because there is no other patient: said, and no leak of its own
            slabs.update(key for what, key in keys if what == "patient")
            keys = []
        for what, key in keys + [("picture", pixels) for pixels, _ in row["pictures"]]:
            seen[what, key].setdefault(split, row["id"])
        for _, thumb in row["pictures"]:
            held[split, row["modality"]].setdefault(thumb, row["id"])
    report.shared, report.slabs = {"patient": 0, "study": 0, "picture": 0}, len(slabs)
    for (what, _), splits in seen.items():
        if len(splits) > 1:
            report.shared[what] += 1
            if report.shared[what] <= SHOWN:
                pairs = sorted(splits.items())
                report.examples.append(
                    {
                        "what": what,
                        "splits": [s or "none" for s, _ in pairs],
                        "records": [r for _, r in pairs],
                    }
                )
    for split, modality in sorted(held):
        if split in ("val", "test") and held.get(("train", modality)):
            report.nearest.append(_nearest(split, modality, held))
    return report


def _nearest(split: str, modality: str, held: dict[tuple[str, str], dict[str, str]]) -> dict[str, Any]:
    """Of one split and modality: how near the training pictures come."""
    mine, theirs = held[split, modality], held["train", modality]
    every = sorted(mine)
    chosen = [every[int(n)] for n in np.linspace(0, len(every) - 1, min(QUERIES, len(every)))]
    queries, known = _unit(chosen), sorted(theirs)
    best = np.full(len(chosen), -1.0, np.float32)
    at = np.zeros(len(chosen), np.int64)
    for start in range(0, len(known), BLOCK):
        products = queries @ _unit(known[start : start + BLOCK]).T  # (queries, block)
        found = products.max(1)
        at = np.where(found > best, products.argmax(1) + start, at)
        best = np.maximum(best, found)
    worst = int(best.argmax())
    return {
        "split": split, "modality": modality, "n": len(chosen),
        "median": round(float(np.median(best)), 4), "p95": round(float(np.quantile(best, 0.95)), 4),
        "max": round(float(best.max()), 4), "share_near": round(float((best > NEAR).mean()), 4),
        "pair": [mine[chosen[worst]], theirs[known[int(at[worst])]]],
    }  # fmt: skip


def _unit(thumbs: list[str]) -> NDArray[np.float32]:
    """(N, 144) of mean 0 and length 1"""
    grey = np.frombuffer(bytes.fromhex("".join(thumbs)), np.uint8).reshape(-1, THUMB * THUMB)
    return thumbnails(grey)
