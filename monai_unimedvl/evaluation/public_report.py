# SPDX-License-Identifier: Apache-2.0
"""A run on a public benchmark as tables, page and cards: every protocol's score of every item.

    made = scored(ask_benchmark(benchmark, network, tokenizer, out="slake"), benchmark, "slake")
    write_report(report_of(made, benchmark, "slake"), "slake", name="unimedvl_nano", counts=count(made.rows))

Beside the predictions.parquet of `public` lie tables, slices.csv, index.html and two cards.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation import tables
from monai_unimedvl.evaluation.counting import Count, notes
from monai_unimedvl.evaluation.examples import ANSWERS, GRID, MAIN, Example, ranked
from monai_unimedvl.evaluation.overlap import overlap
from monai_unimedvl.evaluation.page import Section
from monai_unimedvl.evaluation.pictures import score_pictures
from monai_unimedvl.evaluation.predictions import Prediction, Predictions
from monai_unimedvl.evaluation.protocols import PROTOCOLS, protocol, score
from monai_unimedvl.evaluation.publishing import publish
from monai_unimedvl.evaluation.readers import Benchmark, Item
from monai_unimedvl.evaluation.report import Report
from monai_unimedvl.evaluation.slices import slice_rows
from monai_unimedvl.transforms.image import resize

OURS = str(protocol("strict-v1"))
OTHERS = tuple(str(protocol(name)) for name in PROTOCOLS if name != "strict-v1")
TEXTS = ("token F1", "ROUGE-L", "METEOR", "METEOR (no synonyms)")  # means of their texts
FROM_WORDS = "text-to-image"  # has no single truth
LARGEST = 256  # pixels of a side on the page
NOTES = """\
Words: the score of each item by each protocol, without the faults of its public code; a protocol that an item
does not count for has no score of it, so n differs. Reports by token F1, ROUGE-L and METEOR. Intervals: 95 %
percentile bootstrap over items, and over images where several questions are asked about one. Drawings: PSNR
in dB and SSIM for a data range of 1, at the size of the truth; Dice: mean over the labels in the truth of an
image, HD95 in pixels. Drawings from words have no single truth and are compared as sets, by an encoder that
you name: `unimedvl evaluate --predictions FILE --pictures FOLDER --encoder KIND=PATH`. Whether these items
were in the training of any part is not known here. No clinical claim follows from any of this."""


def scored(made: Predictions, benchmark: Benchmark, folder: str | Path) -> Predictions:
    """The predictions with scores of each item: words by protocols, reports by overlap, drawings by images.

    Args:
        folder: that the names of the drawings start from.

    Raises:
        ValueError: a drawing that cannot be read or scored.
    """
    words = [row for row in made.rows if row.truth]
    found: dict[tuple[str, ...], dict[str, float | None]] = {row.key: {} for row in made.rows}
    for name in PROTOCOLS:
        told = score(words, protocol(name))
        for row, hit in zip(words, told.hits, strict=True):
            if hit is not None:
                found[row.key][str(told.protocol)] = float(hit)
    for language in sorted({row.language for row in words if row.answer_type == "report"}):
        some = [row for row in words if row.answer_type == "report" and row.language == language]
        measures = overlap(
            [row.answer for row in some], [(row.truth, *row.references) for row in some], language=language
        )
        for name in TEXTS:
            for row, value in zip(some, measures[name].each if name in measures else [], strict=False):
                found[row.key][name] = value
    for row in _of_pictures(made, benchmark, folder):
        found[row.key] |= row.scores
    return replace(made, rows=[replace(row, scores={**row.scores, **found[row.key]}) for row in made.rows])


def report_of(made: Predictions, benchmark: Benchmark, folder: str | Path) -> Report:
    """The report of scored predictions.

    Args:
        folder: that the names of the drawings start from; the page shows some.
    """
    told = made.about
    predictions = _by_language(made.rows)
    rows = slice_rows(predictions, ("answer_type",), seed=told["seed"])
    ids = "\n".join(row.id for row in made.rows)
    about = {
        "benchmark": benchmark.name, "sections": sorted({row.section for row in predictions}),
        "limit": told["limit"],
        "tasks": list(dict.fromkeys(row.task for row in made.rows)), "seed": told["seed"],
        "batch": told["batch"], "edit_steps": (str(told["drawing"]).split()[0],), "drawing": told["drawing"],
        "weights": told["weights"], "items": hashlib.sha256(ids.encode()).hexdigest(),
        "missing_sources": list(benchmark.missing), "torch": told["torch"],
        "counted": str(benchmark), "words_behind_questions": told["protocol"], "beside": OTHERS,
        "warnings": [] if benchmark.complete else [f"Not the whole benchmark: {benchmark}."], "notes": NOTES,
    }  # fmt: skip
    kept = [row for row in rows if not row.group.startswith("known failure")]
    shown = _examples(made.rows, benchmark.items, Path(folder), str(told["drawing"]))
    return Report(kept, predictions, about, examples=shown)


def write_report(report: Report, folder: str | Path, *, name: str, counts: Sequence[Count] = ()) -> None:
    """Write tables, slices, page and cards into a folder.

    Args:
        name: of the model. counts: what each protocol makes of the file, for a table of the page.
    """
    folder = Path(folder)
    write(folder / "table.md", report.table() + "\n")
    write(folder / "table.csv", tables.comma_separated(report.rows))
    write(folder / "table.tex", tables.latex(tables.short(report.rows)))
    publish(report, folder, name=name, more=[_protocols(counts)] if counts else [])


def _by_language(rows: Sequence[Prediction]) -> list[Prediction]:
    """Rows of several languages in a section each: strict-v1 never averages over them, nor does a report."""
    if len({row.language for row in rows}) == 1:
        return list(rows)
    return [replace(row, section=f"{row.section} {row.language}") for row in rows]


def _of_pictures(made: Predictions, benchmark: Benchmark, folder: str | Path) -> Iterable[Prediction]:
    """The drawings with their scores, masks of several legends one legend after the other."""
    legends = {item.id: dict(item.legend) for item in benchmark.items if item.legend}
    drawn = [row for row in made.rows if row.drawn and row.task != FROM_WORDS]
    for legend in {str(one): one for one in (legends.get(row.id) for row in drawn)}.values():
        some = [row for row in drawn if legends.get(row.id) == legend]
        yield from score_pictures(replace(made, rows=some), folder, legend=legend).rows


def _protocols(counts: Sequence[Count]) -> Section:
    rows: list[Sequence[str | tuple[str, bool]]] = [
        ("protocol", "of", "kind", "measure", "n", "value (95 %)")
    ]
    for one in counts:
        for line in one.lines:
            span = "" if math.isnan(line.low) else f" ({line.low:.3f} to {line.high:.3f})"
            told = (one.protocol, line.group, line.kind, line.measure, str(line.n), f"{line.value:.3f}{span}")
            rows.append(told)
    said = "".join(f"<li>{escape(f'{one.protocol}: {line}')}</li>" for one in counts for line in notes(one))
    return Section(
        "By every protocol",
        "The same answers, counted as each protocol counts them; `--explain A B` says which rule moves what.",
        rows=rows,
        markdown=f'<ul class="notes">{said}</ul>' if said else "",
    )


def _examples(rows: Sequence[Prediction], items: Sequence[Item], folder: Path, drawing: str) -> list[Example]:
    """Of each task the worst, middle and best drawing and report, and the surest answers."""
    known = {item.id: item for item in items}
    found: list[Example] = []
    for task in dict.fromkeys(row.task for row in rows):
        some = [row for row in rows if row.task == task]
        drawn = [row for row in some if row.drawn]
        if task == FROM_WORDS:
            shown = [("", row) for row in drawn[:: max(1, len(drawn) // GRID)][:GRID]]
        else:
            shown = ranked(drawn, lambda row: _measured(row)[1])
        found += [_drawn(row, why, known, folder, drawing) for why, row in shown]
        told = [row for row in some if row.answer_type == "report" and not row.drawn]
        found += [_said(row, why, known) for why, row in ranked(told, lambda row: row.scores.get(TEXTS[0]))]
        found += [_said(row, why, known) for why, row in _surest(some)]
    return found


def _surest(rows: Sequence[Prediction]) -> Iterable[tuple[str, Prediction]]:
    """The surest wrong and the surest right answers, of different questions."""
    sure = sorted(
        (row for row in rows if row.logprob is not None and row.scores.get(OURS) is not None),
        key=lambda row: -(row.logprob or 0.0),
    )
    for why, right in (("surest wrong", False), ("surest right", True)):
        each = {row.question: row for row in reversed(sure) if (row.scores[OURS] == 1.0) == right}
        best = sorted(each.values(), key=lambda row: -(row.logprob or 0.0))
        yield from ((why, row) for row in best[: ANSWERS // 2])


def _measured(row: Prediction) -> tuple[str, float | None]:
    """The measure that a drawing is ranked by, and its value."""
    return next(((name, row.scores[name]) for name in MAIN if name in row.scores), ("", None))


def _drawn(row: Prediction, why: str, known: Mapping[str, Item], folder: Path, drawing: str) -> Example:
    drawn, truth = (torch.from_numpy(np.load(folder / name)) for name in (row.drawn, row.truth_image))
    truth = _small(truth)
    drawn = resize(drawn, (truth.shape[2], truth.shape[1]), (0.0, 1.0))  # as it is scored: onto the truth
    metric, value = _measured(row)
    steps, _, guidance = drawing.partition(", guidance ")
    return Example(
        row.task, _place(row), row.id, why, _shown(known[row.id]), drawn, truth,
        "" if value is None else MAIN[metric].format(value),
        asked=row.prompt, seed=row.seed, steps=int(steps.split()[0]), guidance=float(guidance or 1),
    )  # fmt: skip


def _said(row: Prediction, why: str, known: Mapping[str, Item]) -> Example:
    report = row.answer_type == "report"
    right = None if report else row.scores.get(OURS) == 1.0
    value = row.scores.get(TEXTS[0])
    return Example(
        "caption" if report else "vqa", _place(row), row.id, why, _shown(known[row.id]),
        asked=row.prompt.replace("<image>", "").strip(), said=row.answer, wanted=row.truth, good=right,
        confidence=None if row.logprob is None else math.exp(min(0.0, row.logprob)),
        score=f"token F1 {value:.2f}" if report and value is not None else "",
    )  # fmt: skip


def _place(row: Prediction) -> str:
    return f"{row.benchmark} {row.section}"


def _shown(item: Item) -> Tensor | None:
    return _small(item.pictures[0].tensor(item.modality or "mri")) if item.pictures else None


def _small(image: Tensor) -> Tensor:
    """A picture (3, H, W) no larger than the page shows it."""
    height, width = image.shape[1:]
    scale = LARGEST / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return resize(image, size, (0.0, 1.0))
