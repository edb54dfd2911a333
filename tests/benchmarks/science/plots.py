# SPDX-License-Identifier: Apache-2.0
"""One picture a question: differences of arms with their intervals, or the curve that was measured."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from monai_unimedvl.atomic import write
from science.plan import Question
from science.report import LABELS, Line, Results, label, point

matplotlib.use("Agg")
COLOURS = ("#1f5fa8", "#c4572b", "#3a8a55", "#7a4fa3", "#b08a1e")
DPI = 110
plt.rcParams |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}


def draw(question: Question, results: Results, path: Path) -> bool:
    """Write the plot of a question; False, and no file, while there is nothing to show."""
    if question.pairs:
        figure = _differences(question, results.lines(question))
    else:
        figure = _curves(question, results)
    if figure is None:
        path.unlink(missing_ok=True)
        return False
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content.getvalue())
    return True


def _differences(question: Question, lines: list[Line]) -> Any:
    """A row a metric and section, a panel a unit, a colour a pair; small dots are seeds."""
    if not lines:
        return None
    units = [
        kind for kind in ("PSNR", "other") if any((x.metric == "PSNR") == (kind == "PSNR") for x in lines)
    ]
    places = {unit: _places(lines, unit) for unit in units}
    pairs = [pair for pair in question.pairs if any((x.first, x.second) == pair for x in lines)]
    height = 1.3 + max(0.3, 0.14 * len(pairs)) * max(map(len, places.values()))
    figure, axes = plt.subplots(1, len(units), figsize=(8.5, max(2.4, height)), squeeze=False)
    for axis, unit in zip(axes[0], units, strict=True):
        axis.axvline(0, color="0.6", linewidth=0.8)
        for row, (place, metric) in enumerate(places[unit]):
            here = [x for x in lines if (x.place, x.metric) == (place, metric)]
            for n, line in enumerate(here):
                y, told = row + (n - (len(here) - 1) / 2) * 0.8 / len(pairs), line.difference
                colour = COLOURS[pairs.index((line.first, line.second))]
                axis.plot([told.low, told.high], [y, y], color=colour, linewidth=1.6)
                axis.plot(told.value, y, "o", color=colour, markersize=4.5)
                if len(line.by_seed) > 1:
                    axis.plot(line.by_seed, [y] * len(line.by_seed), "|", color=colour, markersize=7)
        axis.set_yticks(range(len(places[unit])))
        axis.set_yticklabels([f"{p.split('/')[1]} {m}, {LABELS[p.split('/')[0]]}" for p, m in places[unit]])
        axis.invert_yaxis()
        axis.set_xlabel("difference in dB" if unit == "PSNR" else "difference of shares or scores in [0, 1]")
    handles = [plt.Line2D([], [], color=COLOURS[n], marker="o") for n in range(len(pairs))]
    names = [f"{label(question, b)} less {label(question, a)}" for a, b in pairs]
    figure.legend(handles, names, loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.25 * ((len(names) + 1) // 2) + 0.1) / figure.get_figheight()))
    return figure


def _places(lines: list[Line], unit: str) -> list[tuple[str, str]]:
    """What is on the vertical axis, in the order of the configuration."""
    chosen = [(x.place, x.metric) for x in lines if (x.metric == "PSNR") == (unit == "PSNR")]
    return list(dict.fromkeys(chosen))


def _curves(question: Question, results: Results) -> Any:
    (arm,) = question.arms.values()
    found = results.of(arm, 1).get(0)
    if found is None:
        return None
    return (
        _pruning(found, results) if arm.config["curve"] == "pruning" else _drawing(found, results, arm.config)
    )


def _line(axis: Any, xs: list[float], points: list[tuple[float, ...]], colour: str, name: str) -> None:
    order = sorted(range(len(xs)), key=lambda n: xs[n])
    x = [xs[n] for n in order]
    values, lows, highs = ([points[n][k] for n in order] for k in range(3))
    axis.plot(x, values, "o-", color=colour, label=name, markersize=3.5, linewidth=1.2)
    axis.fill_between(x, lows, highs, color=colour, alpha=0.13, linewidth=0)


def _pruning(found: dict[str, Any], results: Results) -> Any:
    """Share of answers that are right over the share of tokens dropped."""
    figure, axes = plt.subplots(1, len(found["scores"]), figsize=(8.5, 3.2), sharey=True, squeeze=False)
    for axis, (place, settings) in zip(axes[0], found["scores"].items(), strict=True):
        for colour, way in zip(COLOURS, ("those that repeat", "at random"), strict=False):
            chosen = [s for s in settings if s == "all tokens" or s.endswith(way)]
            xs = [100 * found["measured"][f"{place}/{s}"]["dropped"] for s in chosen]
            points = [point(found, results, place, s, "exact match") for s in chosen]
            _line(axis, xs, points, colour, f"dropped: {way}")
        axis.set_title(place.split("/")[0])
        axis.set_xlabel("% of the image tokens dropped")
    axes[0, 0].set_ylabel("share of answers right")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    return figure


def _drawing(found: dict[str, Any], results: Results, config: dict[str, Any]) -> Any:
    """Drawings from words by guidance, a line a number of evaluations; edits by evaluations."""
    places = [place for place in found["scores"] if place.startswith("test/")]
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 6))
    axes = axes.ravel()
    panels = [
        ("test/text-to-image", "contrast and plane"),
        ("test_subject/text-to-image", "contrast and plane"),
    ]
    if "sharpness" in next(iter(found["scores"]["test/text-to-image"].values())):
        panels[1] = ("test/text-to-image", "sharpness")
    for axis, (words, metric) in zip(axes[:2], panels, strict=True):
        for colour, steps in zip(COLOURS, config["sweep"]["steps"], strict=False):
            settings = {
                s: float(m[1]) if (m := re.search(r"guidance ([\d.]+)", s)) else 1.0
                for s in found["scores"][words]
                if s.split()[0] == str(steps)
            }
            points = [point(found, results, words, s, metric) for s in settings]
            _line(axis, list(settings.values()), points, colour, f"{steps} evaluations")
        axis.set_xlabel("guidance")
        axis.set_title(f"from words, {LABELS[words.split('/')[0]]}: {metric}")
    axes[0].legend(frameon=False)
    for axis, metric in zip(axes[2:], ("PSNR", "Dice"), strict=True):
        edits = [p for p in places if metric in next(iter(found["scores"][p].values()))]
        for colour, place in zip(COLOURS, edits, strict=False):
            settings = {s: float(s.split()[0]) for s in found["scores"][place]}
            points = [point(found, results, place, s, metric) for s in settings]
            _line(axis, list(settings.values()), points, colour, place.split("/")[1])
        axis.set_xscale("log", base=2)
        axis.set_xlabel("evaluations")
        axis.set_title(f"edits: {metric}")
        axis.legend(frameon=False)
    figure.tight_layout()
    return figure
