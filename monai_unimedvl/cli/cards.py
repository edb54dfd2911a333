# SPDX-License-Identifier: Apache-2.0
"""A case of the demo as a card: what was given, drawn or said, the best baseline, the truth, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_unimedvl.cli.stage import NAMES, Stage, scored, stands
from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.evaluation import baselines as trivial
from monai_unimedvl.evaluation.page import Card, Figure

TICKS = {True: "\u2713", False: "\u2717"}


def card(stage: Stage, found: Mapping[str, Any]) -> Card:
    """The card of a prediction of any task."""
    kinds = {"vqa": answer, "caption": description, "text-to-image": drawing}
    return kinds.get(found["task"], edit)(stage, found)


def answer(stage: Stage, found: Mapping[str, Any]) -> Card:
    """A question with the answer, the truth, and what training answers most often."""
    item, good = stage.items[found["id"]], bool(found["scores"]["exact match"])
    usual = bool(found["baselines"]["exact match"]["blind"])
    rows: list[list[Any]] = [
        ["question", "model", "truth", "usual answer"],
        [
            item["turns"][0].parts[-1], (f"{TICKS[good]} {found['said'] or '(nothing)'}", good),
            found["truth"], "right" if usual else "wrong",
        ],
    ]  # fmt: skip
    figures = [Figure(trivial.shown(item), "input (real)")]
    return Card(stage.title(item, NAMES["vqa"]), figures, rows=rows, credit=stage.credit(item))


def description(stage: Stage, found: Mapping[str, Any]) -> Card:
    """A picture with the model's words and the true ones."""
    item, scores, guesses = stage.items[found["id"]], found["scores"], found["baselines"]
    blind = {metric: guesses[metric]["blind"] for metric in ("token F1", "label F1")}
    figure = Figure(
        trivial.shown(item), "input (real)", scored("label F1", scores["label F1"]),
        stands("label F1", scores["label F1"], blind["label F1"]),
    )  # fmt: skip
    lines = [
        ("model", found["said"] or "(nothing)"),
        ("truth", found["truth"]),
        ("word F1", f"{scores['token F1']:.2f}"),
        ("baseline", f"label F1 {blind['label F1']:.2f}, word F1 {blind['token F1']:.2f}"),
    ]
    return Card(stage.title(item), [figure], lines, credit=stage.credit(item))


def drawing(stage: Stage, found: Mapping[str, Any]) -> Card:
    """A drawing, the real slice, and what the judge takes them for."""
    item = stage.items[found["id"]]
    good, real = bool(found["scores"]["contrast and plane"]), found["ceiling"]["contrast and plane"]
    usual = found["baselines"]["contrast and plane"]["usual kind"]
    named = ", ".join(filter(None, found["named"]))
    figures = [
        Figure(
            stage.image(found),
            "model",
            f"named {named or 'nothing'}",
            good,
            stage.facts(found),
        ),
        Figure(
            item["truth"], "real, same words", f"{TICKS[bool(real)]} named {'right' if real else 'wrong'}"
        ),
    ]
    copied = found["baselines"]["contrast and plane"].get("nearest training image")
    other = ""
    if copied is not None:
        nearest = stage.fitted("text-to-image")["nearest training image"](item)
        figures.insert(1, Figure(nearest, "baseline (real)", f"{TICKS[bool(copied)]} nearest words"))
        other = f"; training image of nearest words: {'right' if copied else 'wrong'}"
    lines = [
        ("words", found["asked"]),
        ("baseline", f"usual kind: {'right' if usual else 'wrong'}{other}"),
        (
            "nearest",
            f"correlation {found['nearest']:.2f} to the nearest training picture (above 0.98: a copy)",
        ),
    ]
    return Card(stage.title(item, NAMES["text-to-image"]), figures, lines, credit=stage.credit(item))


def edit(stage: Stage, found: Mapping[str, Any]) -> Card:
    """Input, drawing, best baseline, truth; scores under each."""
    item = stage.items[found["id"]]
    metric = "Dice" if item["task"] in LEGENDS else "PSNR"
    name, best = stage.baseline(found)
    score, guesses = found["scores"][metric], found["baselines"][metric]
    good = stands(metric, score, best) if name else None
    kept = next((key for key in ("identity", "bicubic") if key in guesses), None)
    under = "" if kept is None else f"{kept} {scored(metric, guesses[kept])}"
    figures = [
        Figure(trivial.shown(item), "input (real)", under),
        Figure(stage.image(found), "model", scored(metric, score), good, stage.facts(found)),
    ]
    if name and name != kept:
        image = stage.fitted(item["task"])[name](item)
        figures.append(Figure(image, "baseline", f"{name} {scored(metric, best)}"))
    ceiling = found["ceiling"].get(metric)
    label = f"ceiling {scored(metric, ceiling)}" if ceiling is not None and ceiling == ceiling else ""
    figures.append(Figure(item["truth"], "truth (real)", label))
    return Card(
        stage.title(item, NAMES[item["task"]]),
        figures,
        credit=stage.credit(item),
        legend=LEGENDS.get(item["task"], {}),
    )
