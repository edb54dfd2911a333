# SPDX-License-Identifier: Apache-2.0
"""From one prediction for each item to a table: means, intervals, Markdown, files.

A prediction is a JSON-able dictionary: id, task, section, setting, groups (rows that it counts in), what was
said or drawn, and for each metric the item's own score, those of the baselines, and its ceiling. The table is
made of nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation import tables
from monai_unimedvl.evaluation.examples import Example
from monai_unimedvl.evaluation.intervals import interval
from monai_unimedvl.evaluation.predictions import Prediction, write_predictions
from monai_unimedvl.evaluation.protocols.strict import is_bare
from monai_unimedvl.evaluation.tables import ALL, Row
from monai_unimedvl.packages import MissingPackage

log = logging.getLogger(__name__)

NOTES = """\
Sections: `test` is a held-out slab of a known volume, `test_subject` a subject never trained on.
Intervals: 95 % percentile bootstrap over items, and over images where several questions are asked about
one. PSNR in dB and SSIM for a data range of 1. Dice: mean
over the labels in the truth of an image. Baselines are fitted on training items: blind = the most
frequent training answer to that question (captions: of all); lookup = a map of grey levels, for label maps
by source; usual place = by pixel and plane; nearest slice = the mask of the training slice that correlates
most; threshold = the best grey level by contrast, for tissue Otsu's levels of each picture, without any
atlas; mean = the mean training target of that plane; linear colours = an affine map of colours; nearest
training image = the one with the most similar words. Ceiling: the autoencoder's own reconstruction of the
truth; for text-to-image the judge on the real images of the same items. The judge is a small classifier of
contrast, plane and level trained on real training slices; near copy = correlation above 0.98 to a training
image; MMD = unbiased squared maximum mean discrepancy with a cubic kernel on the 64 features of the judge,
Frechet distance by the same. Label F1: of what a caption says, decoded (contrast, plane, level, regions,
tumour ...). As volumes: slabs through the inferer of volumes, Dice over all their voxels. One atlas of lobes
serves every volume of MNI space, so the nearest slice may lend the very truth. VQA is scored on the balanced
questions. No clinical claim follows from any of this."""


@dataclass(frozen=True)
class Report:
    """Rows, the predictions they come from, how it was done, and the drawn images.

    Args:
        predictions: as above; those of a public benchmark are rows of its file and not for `save`.
        about: settings and versions, JSON-able.
        images: name -> (N, 3, H, W) uint8; a prediction names its image as "image": [name, place].
        examples: what a page shows; they are not saved.
    """

    rows: list[Row]
    predictions: list[Any]
    about: dict[str, Any]
    images: dict[str, Tensor] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

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
                contrasts only those in `tables.SHOWN`.
        """
        table = tables.markdown(self.rows if groups else tables.short(self.rows))
        return "\n\n".join(filter(None, [table, self.about.get("notes")]))

    def save(self, folder: str | Path) -> Path:
        """Write the report, each file whole or not at all; returns the folder.

        report.json, table.md, table.csv, table.tex, predictions.jsonl, predictions.parquet (where pyarrow is
        installed; if not, `about["left_out"]` and the log say so) and images.safetensors.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) | {"baseline": row.baseline} for row in self.rows]
        lines = [json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in self.predictions]
        write(folder / "predictions.jsonl", "".join(lines))
        write(folder / "table.md", self.table() + "\n")
        write(folder / "table.csv", tables.comma_separated(self.rows))
        write(folder / "table.tex", tables.latex(tables.short(self.rows)))
        if self.predictions:
            told = {"benchmark": self.about.get("benchmark", ""), "seed": self.about.get("seed")}
            try:
                write_predictions(self.as_predictions(), folder / "predictions.parquet", told)
            except MissingPackage as error:
                (folder / "predictions.parquet").unlink(missing_ok=True)  # of an earlier run
                self.about["left_out"] = f"predictions.parquet is left out: {error}"
                log.warning("%s", self.about["left_out"])
        if self.images:
            from safetensors.torch import save

            write(folder / "images.safetensors", save({k: v.contiguous() for k, v in self.images.items()}))
        about = json.dumps(_plain({"about": self.about, "rows": rows}), ensure_ascii=False, indent=1)
        write(folder / "report.json", about + "\n")
        return folder

    def as_predictions(self) -> list[Prediction]:
        """The predictions as rows of a prediction file; scores that are no numbers are None."""
        benchmark, weights = self.about.get("benchmark", "own"), self.about.get("weights", "")
        return [
            one if isinstance(one, Prediction) else _prediction(one, benchmark, weights)
            for one in self.predictions
        ]

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
    holds every item of its task is no row of its own. Items with the same "picture" are drawn together in the
    bootstrap.
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
        pictures = [one.get("picture") or str(place) for place, one in enumerate(found)]
        low, high = interval(
            values, clusters=pictures if len(set(pictures)) < len(found) else None,
            seed=zlib.crc32(f"{seed} {' '.join(key)}".encode()),
        )  # fmt: skip
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


def _prediction(one: Mapping[str, Any], benchmark: str, weights: str) -> Prediction:
    name = str(one.get("id", one.get("item", "")))
    drawn = "images.safetensors#{}#{}".format(*one["image"]) if "image" in one else ""
    told = ("plane", "contrast", "source")
    return Prediction(
        name, truth=one.get("truth", ""), answer=one.get("said", ""), prompt=one.get("asked", ""),
        question=one.get("asked", "").replace("<image>", "").strip(),
        benchmark=benchmark, section=one["section"], task=one["task"], setting=one["setting"],
        answer_type=_answer_type(one), question_type=one.get("question_type", ""),
        modality=one.get("modality", ""), anatomy=one.get("body", ""),
        image=one.get("picture", ""), patient=one.get("subject", ""), seed=one.get("seed", 0),
        weights=weights,
        groups={key: one[key] for key in told if one.get(key)},
        drawn=drawn, truth_image="" if one.get("truth") else f"{benchmark}#{name}",
        logprob=one.get("logprob"), tokens=one.get("tokens"), stop_reason=one.get("stop_reason", ""),
        scores=_numbers(one["scores"]), ceiling=_numbers(one["ceiling"]),
        baselines={metric: _numbers(found) for metric, found in one["baselines"].items()},
    )  # fmt: skip


def _answer_type(one: Mapping[str, Any]) -> str:
    """What protocols and text measures go by: captions are reports, yes and no are closed."""
    if not one.get("truth"):
        return ""
    return "report" if one["task"] == "caption" else "closed" if is_bare(one["truth"]) else "open"


def _numbers(scores: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: float(score) if _is_number(score) else None for name, score in scores.items()}


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
