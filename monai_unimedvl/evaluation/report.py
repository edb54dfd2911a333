# SPDX-License-Identifier: Apache-2.0
"""From one prediction for each item to a table: means, intervals, Markdown, files.

A prediction is a JSON-able dictionary: id, task, section, setting, groups (rows that it counts in), what was
said or drawn, and for each metric the item's own score, those of the baselines, and its ceiling. The table is
made of nothing else.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_unimedvl.evaluation.intervals import interval

ALL = "all"
UNITS = {"PSNR": "{:.2f}"}  # how a metric is printed; others as {:.3f}
# groups that the short table shows too: (task, metric) -> which of them, None for all
SHOWN: dict[tuple[str, str], tuple[str, ...] | None] = {
    ("vqa", "exact match"): ("contrast", "plane"), ("sr4", "PSNR"): None, ("sr4", "SSIM"): (),
}  # fmt: skip
NOTES = """\
Sections: `test` is a held-out slab of a known volume, `test_subject` a subject never trained on.
Intervals: 95 % percentile bootstrap over items. PSNR in dB and SSIM for a data range of 1. Dice: mean
over the labels in the truth of an image. Baselines are fitted on training items: blind = the most
frequent training answer to that question (captions: of all); lookup = by grey level, for label maps also
by source; usual place = by pixel and plane; threshold = the best grey level by contrast; mean = the mean
training target of that plane. Ceiling: the autoencoder's own reconstruction of the truth; for text-to-
image the judge on the real images of the same items. The judge is a small classifier of plane and
contrast trained on real training slices; near copy = correlation above 0.98 to a training image. VQA is
scored on the balanced questions. No clinical claim follows from any of this."""


@dataclass(frozen=True)
class Row:
    """One line of the table; a higher value is better, except for near copies.

    Args:
        group: "all", or the source, question or contrast.
        setting: how it was made, such as "4 steps".
        n: items.
        value: their mean score.
        low, high: 95 % percentile bootstrap interval over items.
        baselines: name -> mean score of the same items.
        ceiling: mean score of the best that could be reached, or None.
    """

    task: str
    section: str
    group: str
    setting: str
    metric: str
    n: int
    value: float
    low: float
    high: float
    baselines: dict[str, float] = field(default_factory=dict)
    ceiling: float | None = None

    @property
    def baseline(self) -> tuple[str, float] | None:
        """Name and score of the best baseline."""
        if not self.baselines:
            return None
        return max(self.baselines.items(), key=lambda pair: pair[1])


@dataclass(frozen=True)
class Report:
    """Rows, the predictions they come from, how it was done, and the drawn images.

    Args:
        about: settings and versions, JSON-able.
        images: name -> (N, 3, H, W) uint8; a prediction names its image as "image": [name, place].
    """

    rows: list[Row]
    predictions: list[dict[str, Any]]
    about: dict[str, Any]
    images: dict[str, Tensor] = field(default_factory=dict)

    def find(
        self, task: str, metric: str, section: str = "test", group: str = ALL, setting: str | None = None
    ) -> Row:
        """The row of a task and metric; of several settings the first, which is the shipped default.

        Raises:
            ValueError: there is none.
        """
        for row in self.rows:
            if (row.task, row.metric, row.section, row.group) == (task, metric, section, group):
                if setting is None or row.setting == setting:
                    return row
        raise ValueError(
            f"The report has no row for {task}, {metric}, {section}, {group}: it has "
            f"{', '.join(sorted({f'{row.task} {row.metric}' for row in self.rows})) or 'none'}."
        )

    def table(self, *, groups: bool = True) -> str:
        """The rows as a Markdown table, and below it what they mean.

        Args:
            groups: False for the short table: default settings only, and of single sources, questions and
                contrasts only those in `SHOWN`.
        """
        head = "| task | section | of | metric | n | value (95 %) | baselines | ceiling |"
        lines = [head, "|---|---|---|---|--:|--:|---|--:|"]
        default: dict[str, str] = {}
        for row in self.rows:
            if groups or (row.setting == default.setdefault(row.task, row.setting) and _is_short(row)):
                lines.append(_line(row))
        if notes := self.about.get("notes"):
            lines += ["", notes]
        return "\n".join(lines)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, table.md, predictions.jsonl, images.safetensors, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) | {"baseline": row.baseline} for row in self.rows]
        lines = [json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in self.predictions]
        write(folder / "predictions.jsonl", "".join(lines))
        write(folder / "table.md", self.table() + "\n")
        if self.images:
            from safetensors.torch import save

            write(folder / "images.safetensors", save({k: v.contiguous() for k, v in self.images.items()}))
        about = json.dumps(_plain({"about": self.about, "rows": rows}), ensure_ascii=False, indent=1)
        write(folder / "report.json", about + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """A report that `save` wrote; scores that are no numbers come back as NaN.

        Raises:
            ValueError: the folder holds no report.
        """
        folder = Path(folder)
        if not (folder / "report.json").is_file():
            raise ValueError(
                f"{folder} holds no report.json: write one with `unimedvl evaluate BUNDLE --out {folder}`."
            )
        saved = json.loads((folder / "report.json").read_text("utf8"))
        rows = [Row(**{k: v for k, v in row.items() if k != "baseline"}) for row in saved["rows"]]
        lines = (folder / "predictions.jsonl").read_text("utf8").splitlines()
        images: dict[str, Tensor] = {}
        if (folder / "images.safetensors").is_file():
            from safetensors.torch import load_file

            images = load_file(folder / "images.safetensors")
        return cls(rows, [json.loads(line) for line in lines], saved["about"], images)


def summarise(predictions: Iterable[Mapping[str, Any]], *, seed: int = 0) -> list[Row]:
    """One row for each task, section, setting, group and metric, in the order in which they first come.

    An item whose score is None or NaN does not count, in the value, baselines and ceiling alike. A group that
    holds every item of its task is no row of its own.
    """
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for one in predictions:
        for group in (ALL, *one["groups"]):
            for metric, score in one["scores"].items():
                if _is_number(score):
                    cells[one["task"], one["section"], group, one["setting"], metric].append(one)
    tasks = {task: place for place, task in enumerate(dict.fromkeys(key[0] for key in cells))}
    sections = {section: place for place, section in enumerate(dict.fromkeys(key[1] for key in cells))}

    def order(key: tuple[str, ...]) -> tuple[Any, ...]:
        return tasks[key[0]], sections[key[1]], key[2] != ALL, not key[2].startswith(ALL)

    rows = []
    for key in sorted(cells, key=order):
        task, section, group, setting, metric = key
        found = cells[key]
        if group != ALL and len(found) == len(cells[task, section, ALL, setting, metric]):
            continue
        values = np.array([one["scores"][metric] for one in found], dtype=np.float64)
        low, high = interval(values, seed=zlib.crc32(f"{seed} {' '.join(key)}".encode()))
        names = dict.fromkeys(name for one in found for name in one["baselines"].get(metric, {}))
        baselines = {name: _mean(one["baselines"][metric].get(name) for one in found) for name in names}
        ceiling = _mean(one["ceiling"].get(metric) for one in found)
        rows.append(
            Row(
                task, section, group, setting, metric, len(found), float(values.mean()), low, high,
                {name: value for name, value in baselines.items() if value is not None}, ceiling,
            )
        )  # fmt: skip
    return rows


def explain(about: Mapping[str, Any]) -> str:
    """What the table means, and the settings of a run in words."""
    items = "all items" if about["limit"] is None else f"{about['limit']} items of each task or question"
    shares = " and ".join(f"{share:.2f} ({name})" for name, share in about["judge"].items())
    judge = f" The judge names {shares} of real held-out images right." if shares else ""
    absent = f" Absent sources: {', '.join(about['missing_sources'])}." if about["missing_sources"] else ""
    steps = " and ".join(map(str, about["edit_steps"]))
    return f"{NOTES}\nThis run: {items}, seed {about['seed']}; edits in {steps} steps.{judge}{absent}"


def fill(path: str | Path, marker: str, table: str) -> None:
    """Put a table between the lines `<!-- marker -->` and `<!-- /marker -->` of a Markdown file.

    Raises:
        ValueError: the file has not exactly one such pair.
    """
    path = Path(path)
    text = path.read_text("utf8")
    start, stop = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if text.count(start) != 1 or text.count(stop) != 1 or text.index(start) > text.index(stop):
        raise ValueError(
            f"{path} has not one pair of lines {start} and {stop}: write them where the table belongs."
        )
    before, rest = text.split(start)
    after = rest.split(stop)[1]
    write(path, f"{before}{start}\n\n{table.strip()}\n\n{stop}{after}")


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    raw = content.encode("utf8") if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as stream:
        stream.write(raw)
    os.chmod(stream.name, 0o644)
    os.replace(stream.name, path)


def _is_short(row: Row) -> bool:
    shown = SHOWN.get((row.task, row.metric), ())
    return row.group.split(",")[0] == ALL or shown is None or row.group in shown


def _line(row: Row) -> str:
    shape = UNITS.get(row.metric, "{:.3f}")
    value = f"{shape.format(row.value)} ({shape.format(row.low)} to {shape.format(row.high)})"
    ordered = sorted(row.baselines.items(), key=lambda pair: -pair[1])
    baselines = ", ".join(f"{name} {shape.format(score)}" for name, score in ordered)
    ceiling = "" if row.ceiling is None else shape.format(row.ceiling)
    metric = f"{row.metric}, {row.setting}" if row.setting else row.metric
    cells = (row.task, row.section, row.group, metric, str(row.n), value, baselines, ceiling)
    return f"| {' | '.join(cells)} |"


def _is_number(score: Any) -> bool:
    return score is not None and not math.isnan(score)


def _mean(scores: Iterable[Any]) -> float | None:
    found = [score for score in scores if _is_number(score)]
    return float(np.mean(found)) if found else None


def _plain(value: Any) -> Any:
    """Without what JSON cannot say: numbers rounded to 6 digits, NaN as null."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating | torch.Tensor):
        number = float(value)
        return None if not math.isfinite(number) else round(number, 6)
    return value
