# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML page that stands alone: charts, tables, pictures beside their truth, what is unknown.

    publish(report, "evaluation", name="unimedvl_nano")   # index.html, model_card.md, mi_claim_gen.md, ...

Nothing on the page is loaded from anywhere. What the model drew is framed, named synthetic, and marked in the
bytes of its own PNG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import optional_import

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation import charts
from monai_unimedvl.evaluation.calibration import (
    confidences,
    refuse_threshold,
    reliability,
    risk_coverage,
)
from monai_unimedvl.evaluation.cards import GATES, hub_card, mi_claim_gen
from monai_unimedvl.evaluation.examples import Example, difference
from monai_unimedvl.evaluation.page import Card, Figure, Section, page
from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols import protocol
from monai_unimedvl.evaluation.report import Report
from monai_unimedvl.evaluation.slices import FEWEST, slice_rows, warnings
from monai_unimedvl.evaluation.tables import ALL, LONG, LOWER, Row, cells, comma_separated, number, short
from monai_unimedvl.provenance import Facts, save_page

RISKS = (0.05, 0.1, 0.2)
RIGHT = ("exact match", str(protocol("strict-v1")))
KEY = (
    "Dot and whisker: the model with its 95 % interval, green where all of it beats the best baseline, brown"
    " where the best baseline beats all of it. Rings: baselines. Blue bar: ceiling. Hover for names."
)
NAMES = {"test": "held-out slab", "test_subject": "unseen subjects", "val": "validation slab"}  # of the atlas


def publish(
    report: Report, folder: str | Path, *, name: str, facts: Facts | None = None, more: Sequence[Section] = ()
) -> list[Path]:
    """Write the page, the slices and the two cards into the folder of a report; returns what was written.

    Args:
        name: of the model.
        facts: for the mark of the page; by default the seed and weights of the run.
        more: sections of the page behind the scores.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = report.about
    facts = facts or Facts(
        "evaluation", int(about.get("seed") or 0), str(about.get("weights", "")), "evaluate"
    )
    slices = slice_rows(report.as_predictions(), seed=int(about.get("seed") or 0))
    beside = about.get("beside", ())  # protocols that stand beside ours and say the same of a slice
    told = [*about.get("warnings", ()), *warnings(row for row in slices if row.metric not in beside)]
    written = [
        folder / "slices.csv", folder / "model_card.md", folder / "mi_claim_gen.md", folder / "index.html",
    ]  # fmt: skip
    write(written[0], comma_separated(slices))
    write(written[1], hub_card(report, name, told))
    write(written[2], mi_claim_gen(report, name, told))
    save_page(html(report, name, slices, told, more), written[3], facts)
    return written


def html(
    report: Report, name: str, slices: Sequence[Row], told: Sequence[str], more: Sequence[Section] = ()
) -> str:
    """The text of the page."""
    about = report.about
    limit = about.get("limit")
    items = len(report.predictions)
    every, few = "every item", f"limited to {limit} items of each task or question"
    if counted := about.get("counted"):  # a public benchmark, of which some may be missing here
        every, few = f"every item that is here ({counted})", f"limited to {limit} items ({counted})"
    lead = [
        f"{items} predictions on {about.get('benchmark', 'own data')}, "
        + (every if limit is None else few)
        + f"; seed {about.get('seed')}, weights `{str(about.get('weights', 'unknown'))[:12]}`, drawn in "
        f"{' and '.join(map(str, about.get('edit_steps', ('?',))))} steps, from words in "
        f"{about.get('drawing', '?')}. The same command gives the same numbers to the last digit.",
        "Research model, not a medical device. A score is of these items and this protocol; no clinical claim"
        " follows from any of it.",
    ]
    found = [
        _overview(report), _scores(report), *more, _answers(report), *_pictures(report), _words(report),
        _slices(slices, told), _privacy(report), _method(report),
    ]  # fmt: skip
    foot = [
        "Written by monai_unimedvl. Everything with a dashed frame was drawn by the model and is synthetic."
    ]
    text = page(
        f"{name}: what it can do, measured", lead, [section for section in found if section is not None], foot
    )
    return text.replace("</style>", f"{charts.STYLE}</style>", 1)


def _overview(report: Report) -> Section | None:
    rows = [row for row in short(report.rows) if row.group == ALL and row.metric not in LOWER]
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.task, row.section), row)
    panels = []
    for title, wanted in (
        ("Shares and overlaps, higher is better", False),
        ("PSNR in dB, higher is better", True),
    ):
        shown = [row for row in first.values() if (row.metric == "PSNR") == wanted]
        if shown:
            axis = (10, 45, 5, " dB") if wanted else (0, 1, 0.2, "")
            panels.append(f'<div class="chartcard"><h3>{title}</h3>{charts.scores_chart(shown, *axis)}</div>')
    if not panels:
        return None
    about = "One line for each task: its first metric over all items, beside what needs no model."
    return Section("At a glance", about, markdown="".join(panels), note=KEY)


def _scores(report: Report) -> Section | None:
    head = ("task", "section", "metric", "n", "value (95 %)", "baselines", "ceiling")
    rows: list[Sequence[str | tuple[str, bool]]] = [head]
    for row in short(report.rows):
        if row.group != ALL:
            continue
        task, section, _, _, n, value, baselines, ceiling = cells(row)
        shade = charts.verdict(row)
        shown: str | tuple[str, bool] = (value, shade == "above") if shade else value
        rows.append((task, section.replace("_", " "), row.metric, n, shown, baselines, ceiling))
    if len(rows) == 1:
        return None
    about = "Green: the whole interval beats the best baseline. Brown: the best baseline beats it."
    if not any(row.baselines for row in report.rows):
        about = "No baseline is known for these items."
    files = "Every group, in full precision: `table.csv`, `table.md`, `table.tex`."
    return Section("Scores", about, rows=rows, note=files)


def _answers(report: Report) -> Section | None:
    rows = _answered(report)
    if not rows:
        return None
    sure, right = confidences(rows, _right(rows))
    found, curve = reliability(sure, right), risk_coverage(sure, right)
    panels = "".join(
        f'<div class="chartcard"><h3>{title}</h3>{chart}</div>'
        for title, chart in (
            ("Is it as right as it is sure?", charts.reliability_chart(found)),
            ("What refusing would buy", charts.risk_chart(curve)),
        )
    )
    auroc = "undefined" if found.auroc is None else f"{found.auroc:.3f}"
    lines = [
        f"{found.n} answers; expected calibration error {found.ece:.3f}, Brier score {found.brier:.3f}, a"
        f" right answer is surer than a wrong one with chance {auroc}."
    ]
    lines += refusals(report)
    notes = "".join(f"<li>{line}</li>" for line in lines)
    cards = [_answer(one) for one in report.examples if one.task == "vqa"]
    return Section(
        "Answers and how sure they are",
        "Confidence is the probability that the model itself gives to its whole answer. The examples are the"
        " surest wrong answers of different questions, then the surest right ones.",
        cards,
        markdown=f'<div class="charts">{panels}</div><ul class="notes">{notes}</ul>',
    )


def refusals(report: Report) -> list[str]:
    """From which confidence on to answer: chosen on one half of the images, told on the other."""
    if not optional_import("scipy.stats")[1]:
        return ["A refuse threshold needs scipy, which is not installed."]
    rows = _answered(report)
    places = {image: n for n, image in enumerate(dict.fromkeys(row.image for row in rows))}
    halves = [[row for row in rows if places[row.image] % 2 == half] for half in (0, 1)]
    if not all(halves):
        return ["Too few answers to choose a refuse threshold."]
    (sure, right), (other, truth) = (confidences(half, _right(rows)) for half in halves)
    lines = []
    for risk in RISKS:
        chosen = refuse_threshold(sure, right, risk=risk)
        given = other >= chosen.threshold
        held = f"; on the other half {given.mean():.0%} answered"
        held += f", {1 - truth[given].mean():.1%} of them wrong" if given.any() else ""
        lines.append(f"Refusing, at most {risk:.0%} wrong: {chosen}{held}.")
    return lines


def _answered(report: Report) -> list[Prediction]:
    """The answers to questions that have both a confidence and a score."""
    rows = report.as_predictions()
    return [row for row in rows if row.logprob is not None and row.scores.get(_right(rows)) is not None]


def _right(rows: Iterable[Prediction]) -> str:
    """The score that says whether an answer is right: of the atlas, or strict-v1 of a public benchmark."""
    known = {name for row in rows for name in row.scores}
    return next((name for name in RIGHT if name in known), RIGHT[0])


def _answer(one: Example) -> Card:
    assert one.given is not None
    sure = "" if one.confidence is None else f"{one.confidence:.3f}"
    lines = [("asked", one.asked), ("said", one.said), ("truth", one.wanted), ("confidence", sure)]
    return Card(
        f"{one.why}, {NAMES.get(one.section, one.section)}",
        [Figure(one.given, "given")],
        lines,
        credit=one.id,
    )


def _pictures(report: Report) -> Iterable[Section | None]:
    weights = str(report.about.get("weights", ""))
    cards = []
    for one in report.examples:
        if one.drawn is None or one.truth is None or one.given is None:
            continue
        facts = Facts(one.asked, one.seed, weights, one.task, steps=one.steps, text_guidance=one.guidance)
        figures = [
            Figure(one.given, "given", one.baseline), Figure(one.drawn, "drawn", one.score, one.good, facts),
            Figure(one.truth, "truth"), Figure(difference(one.drawn, one.truth), "difference", facts=facts),
        ]  # fmt: skip
        cards.append(
            Card(f"{one.task}, {one.why}, {NAMES.get(one.section, one.section)}", figures, credit=one.id)
        )
    if cards:
        yield Section(
            "Edits and masks",
            "Of each task the item with the lowest score, the one in the middle and the one with the highest:"
            " what was given with the score of the best baseline, what was drawn, the truth, and where both"
            " differ (black: not at all; white: by half of the range or more).",
            cards,
        )
    cards = [_told(one) for one in report.examples if one.task == "caption"]
    if cards:
        yield Section("Descriptions", "The worst, the middle and the best by token F1.", cards)


def _told(one: Example) -> Card:
    assert one.given is not None
    lines = [("said", one.said), ("truth", one.wanted), ("score", one.score)]
    return Card(
        f"{one.why}, {NAMES.get(one.section, one.section)}",
        [Figure(one.given, "given")],
        lines,
        credit=one.id,
    )


def _words(report: Report) -> Section | None:
    drawn = [one for one in report.examples if one.task == "text-to-image"]
    if not drawn:
        return None
    weights = str(report.about.get("weights", ""))
    cards = []
    for section in dict.fromkeys(one.section for one in drawn):
        some = [one for one in drawn if one.section == section and one.drawn is not None]
        for title, kind in (("drawn from the words of these items", "drawn"), ("the real images", "truth")):
            figures = []
            for n, one in enumerate(some, 1):
                facts = Facts(
                    one.asked, one.seed, weights, one.task, steps=one.steps, text_guidance=one.guidance
                )
                image = one.drawn if kind == "drawn" else one.truth
                assert image is not None
                figures.append(Figure(image, str(n), facts=facts if kind == "drawn" else None))
            cards.append(Card(f"{NAMES.get(section, section)}: {title}", figures, wide=True))
        lines = [(str(n), one.asked) for n, one in enumerate(some, 1)]
        cards.append(Card(f"{NAMES.get(section, section)}: the words", (), lines, wide=True))
    head = ("section", "measure", "n", "drawings (95 %)", "as many images that need no model")
    rows: list[Sequence[str | tuple[str, bool]]] = [head]
    for row in report.rows:
        if row.task == "text-to-image" and (row.metric in LONG or row.metric == "Frechet distance"):
            low, high = number(row.metric, row.low), number(row.metric, row.high)
            other = cells(row)[6]
            shown = f"{number(row.metric, row.value)} ({low} to {high})"
            rows.append((row.section.replace("_", " "), row.metric, str(row.n), shown, other))
    about = "Evenly spaced items of the benchmark, drawn and real under the same number."
    if len(rows) > 1:
        about += (
            " Distances between the sets are by the small judge trained here, not by Inception: no paper's"
            " number compares with them."
        )
    return Section(
        "Drawn from words",
        about,
        cards,
        rows=rows if len(rows) > 1 else [],
    )


def _slices(slices: Sequence[Row], told: Sequence[str]) -> Section:
    head = ("task", "section", "of", "metric", "n", "value (95 %)", "baselines")
    default: dict[tuple[str, str], tuple[str, str]] = {}
    rows: list[Sequence[str | tuple[str, bool]]] = [head]
    for row in slices:
        first = default.setdefault((row.task, row.section), (row.setting, row.metric))
        if (
            row.group != ALL
            and (row.setting, row.metric) == first
            and row.group.startswith(("modality", "anatomy", "known"))
        ):
            if row.n >= FEWEST or row.group.startswith("known"):
                task, section, group, _, n, value, baselines, _ = cells(row)
                shade = charts.verdict(row)
                shown: str | tuple[str, bool] = (value, shade == "above") if shade else value
                rows.append((task, section.replace("_", " "), group, row.metric, n, shown, baselines))
    notes = "".join(f"<li>{line}</li>" for line in told)
    return Section(
        "Slices and warnings",
        "First what a mean hides; then the scores by modality and anatomy, where there are 20 items, and by"
        " what this model family is known to get wrong. Smaller slices and those by question type are in"
        " `slices.csv`.",
        cards=[Card("Slices", rows=rows, wide=True)] if len(rows) > 1 else [],
        markdown=f'<ul class="notes">{notes}</ul>' if notes else "",
    )


def _privacy(report: Report) -> Section | None:
    audits: Mapping[str, Any] = report.about.get("audits", {})
    if not audits:
        return None
    head = ("section", "verdict", *(title for title, _ in GATES.values()))
    rows: list[Sequence[str | tuple[str, bool]]] = [head]
    for section, found in audits.items():
        shares = [_share(found[key]) if found.get(key) else "not asked" for key in GATES]
        verdict = found["verdict"]
        shown: str | tuple[str, bool] = verdict if verdict == "undecided" else (verdict, verdict == "passed")
        rows.append((section.replace("_", " "), shown, *shares))
    why = "; ".join(f"{section}: {line}" for section, found in audits.items() for line in found["why"])
    return Section(
        "Privacy audit",
        "Do drawings give away training images? Each share beside that of real held-out images or of chance.",
        rows=rows,
        note=f"{why}. A pass says that this encoder finds nothing; it proves no privacy.",
    )


def _share(found: Mapping[str, Any]) -> str:
    beside = "" if found["reference"] is None else f", beside {found['reference']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}){beside}"


def _method(report: Report) -> Section:
    about = report.about
    names = (
        "benchmark", "sections", "tasks", "limit", "seed", "batch", "edit_steps", "drawing", "weights",
        "items", "missing_sources", "parameters", "torch", "left_out",
    )  # fmt: skip
    rows: list[Sequence[str | tuple[str, bool]]] = [("setting", "value")]
    rows += [(name.replace("_", " "), _words_of(about[name])) for name in names if name in about]
    return Section("How it was done", str(about.get("notes", "")), rows=rows)


def _words_of(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "all" if value is None else str(value)
