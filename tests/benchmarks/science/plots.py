# SPDX-License-Identifier: Apache-2.0
"""One picture a question: differences of arms with their intervals, or the curve that was measured."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from monai_unimedvl.atomic import write
from science.comparisons import Line, Results, counts, place_words, read_items
from science.curves import BLIND
from science.plan import Question
from science.report import label

matplotlib.use("Agg")
COLOURS = ("#1f5fa8", "#c4572b", "#3a8a55", "#7a4fa3", "#b08a1e", "#4d4d4d", "#c2569a")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 110
WIDTH = 10.0
UNPAIRED = (
    "Bars: 95 % of each mean by itself. Settings were measured on the same items: their paired differences,\n"
    "with intervals of their own, stand in the tables."
)
plt.rcParams |= {"font.size": 9, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False}


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
    """A row a metric and section, a panel a unit, a colour a pair; marks above a bar are seeds."""
    if not lines:
        return None
    kinds = [kind for kind in (True, False) if any((x.metric == "PSNR") == kind for x in lines)]
    places = {
        kind: list(dict.fromkeys((x.place, x.metric) for x in lines if (x.metric == "PSNR") == kind))
        for kind in kinds
    }
    pairs = [pair for pair in question.pairs if any((x.first, x.second) == pair for x in lines)]
    shared = max(
        sum((x.place, x.metric) == one for x in lines) for one in {(x.place, x.metric) for x in lines}
    )
    seeded = any(line.over_seeds for line in lines)
    top = 0.22 * (len(pairs) + 1) + 0.15
    height = top + 0.6 + max(0.42, 0.24 * shared) * max(map(len, places.values()))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(WIDTH, max(2.6, height)), squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.axvline(0, color="0.6", linewidth=0.8)
        for row, one in enumerate(places[kind]):
            here = [x for x in lines if (x.place, x.metric) == one]
            for n, line in enumerate(here):
                _bar(axis, line, row + (n - (len(here) - 1) / 2) * 0.78 / shared, pairs)
        names = [f"{place_words(place)}: {metric}" for place, metric in places[kind]]
        axis.set_yticks(range(len(names)), [_folded(name) for name in names])
        axis.set_ylim(len(names) - 0.45, -0.55)
        axis.set_xlabel("difference in dB" if kind else "difference of scores in [0, 1]")
    handles = [plt.Line2D([], [], color=COLOURS[n], marker=MARKS[n]) for n in range(len(pairs))]
    told = [f"{label(question, b)}, less {label(question, a)}" for a, b in pairs]
    about = "thick bar: 95 % over images"
    if seeded:
        about += "; thin bar with ends: Student's 95 % over three seeds; upright marks: each seed"
    _leave(figure, above=top)
    figure.legend(handles, told, loc="upper left", ncols=1, frameon=False, borderaxespad=0.2)
    figure.text(0.012, 1 - (top - 0.12) / figure.get_figheight(), f"Mark: mean; {about}.", va="bottom")
    return figure


def _bar(axis: Any, line: Line, y: float, pairs: Sequence[tuple[str, str]]) -> None:
    """One difference: its mean, its interval over images, its seeds and their interval."""
    told, which = line.difference, pairs.index((line.first, line.second))
    colour = COLOURS[which]
    if line.over_seeds:
        axis.plot(line.over_seeds, [y, y], "|-", color=colour, linewidth=0.7, markersize=4, alpha=0.8)
        axis.plot(line.by_seed, [y] * len(line.by_seed), "|", color=colour, markersize=9, markeredgewidth=1.2)
    axis.plot([told.low, told.high], [y, y], color=colour, linewidth=3, alpha=0.55, solid_capstyle="butt")
    axis.plot(told.value, y, MARKS[which], color=colour, markersize=4.5)


def _folded(name: str) -> str:
    """A label on two lines: the place over the metric."""
    return name.replace(": ", "\n")


def _curves(question: Question, results: Results) -> Any:
    (arm,) = question.arms.values()
    found = results.of(arm, 1).get(0)
    if found is None:
        return None
    return (
        _pruning(found, results) if arm.config["curve"] == "pruning" else _drawing(found, results, arm.config)
    )


def _line(
    axis: Any, xs: Sequence[float], points: Sequence[tuple[float, ...]], which: int, name: str,
    *, among: int = 1,
) -> None:  # fmt: skip
    """Means with a bar over their intervals, those of other lines beside and not upon them."""
    order = sorted(range(len(xs)), key=lambda n: xs[n])
    aside = (which - (among - 1) / 2) * 0.012 * (max(xs) - min(xs)) if among > 1 else 0.0
    values, lows, highs = ([points[n][k] for n in order] for k in range(3))
    ends = [
        [v - a for v, a in zip(values, lows, strict=True)],
        [b - v for v, b in zip(values, highs, strict=True)],
    ]
    axis.errorbar(
        [xs[n] + aside for n in order], values, yerr=ends, fmt=f"{MARKS[which]}-", color=COLOURS[which],
        label=name, markersize=4.5, linewidth=1.2, elinewidth=0.9, capsize=2,
    )  # fmt: skip


def _titled(found: dict[str, Any], results: Results, place: str, of: str) -> str:
    """A place, and how much of it was measured."""
    items, _, whole = counts(read_items(results.folder, found["items"])[place]).split(" / ")
    return f"{place_words(place)}\n{items} {of} {whole} volume{'s' * (whole != '1')}"


def _pruning(found: dict[str, Any], results: Results) -> Any:
    """Share of answers that are right over the share of tokens dropped, a panel a section."""
    figure, axes = plt.subplots(
        1, len(found["scores"]), figsize=(WIDTH, 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (place, settings) in zip(axes[0], found["scores"].items(), strict=True):
        for which, way in enumerate(("those that repeat", "at random")):
            chosen = [s for s in settings if s == "all tokens" or s.endswith(way)]
            xs = [100 * found["measured"][f"{place}/{s}"]["dropped"] for s in chosen]
            points = [results.point(found, place, s, "exact match") for s in chosen]
            _line(axis, xs, points, which, f"dropped: {way}", among=2)
        if BLIND in settings:
            guess = results.point(found, place, BLIND, "exact match")[0]
            axis.axhline(guess, color="0.35", linewidth=1, linestyle="--", label=BLIND)
        axis.set_title(_titled(found, results, place, "questions about"))
        axis.set_xlabel("image tokens dropped, %")
    axes[0, 0].set_ylabel("share of answers right")
    _beneath(figure, [axes[0, 0]])
    return figure


def _drawing(found: dict[str, Any], results: Results, config: dict[str, Any]) -> Any:
    """Drawings from words by guidance, a line a number of evaluations; edits by evaluations."""
    figure, axes = plt.subplots(2, 3, figsize=(WIDTH, 7.0), layout="constrained")
    axes[0, 1].sharey(axes[0, 0])
    for axis, place in zip(axes[0], ("test/text-to-image", "test_subject/text-to-image"), strict=False):
        for which, steps in enumerate(config["sweep"]["steps"]):
            settings = {
                s: float(m[1]) if (m := re.search(r"guidance ([\d.]+)", s)) else 1.0
                for s in found["scores"][place]
                if s.split()[0] == str(steps)
            }
            points = [results.point(found, place, s, "contrast and plane") for s in settings]
            _line(
                axis,
                list(settings.values()),
                points,
                which,
                f"{steps} evaluations",
                among=len(config["sweep"]["steps"]),
            )
        beside = found["baselines"].get(f"{place}/contrast and plane", {})
        for style, name in ((":", "nearest training image"), ("--", "ceiling")):
            if name in beside:
                words = {"ceiling": "the judge on the real images (ceiling)"}.get(name, name)
                axis.axhline(beside[name], color="0.35", linewidth=1, linestyle=style, label=words)
        axis.set_xlabel("guidance (1: none)")
        axis.set_xticks(config["sweep"]["guidance"], [f"{x:g}" for x in config["sweep"]["guidance"]])
        axis.set_ylabel("right contrast and plane, share")
        axis.set_title(_titled(found, results, place, "items of"))
    handles, names = axes[0, 0].get_legend_handles_labels()
    axes[0, 2].axis("off")
    axes[0, 2].legend(handles, names, loc="center left", frameon=False, title="Drawings from words")
    edits = [("test/sr4", "PSNR"), ("test/t1-to-t2", "PSNR"), ("test/seg-tissue", "Dice")]
    for which, (axis, (place, metric)) in enumerate(zip(axes[1], edits, strict=True)):
        settings = {s: float(s.split()[0]) for s in found["scores"][place]}
        points = [results.point(found, place, s, metric) for s in settings]
        _line(axis, list(settings.values()), points, which, metric)
        axis.set_xscale("log", base=2)
        axis.set_xticks(list(settings.values()), [f"{x:g}" for x in settings.values()])
        axis.minorticks_off()
        axis.set_xlabel("evaluations of the network")
        axis.set_ylabel("PSNR, dB" if metric == "PSNR" else metric)
        axis.set_title(_titled(found, results, place, "items of"))
    _beneath(figure, [])
    return figure


def _leave(figure: Any, *, above: float = 0.0, below: float = 0.0) -> None:
    """Room for words, in inches."""
    height = figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (above + below) / height))


def _beneath(figure: Any, axes: Sequence[Any]) -> None:
    """The legend of some axes, and what the bars mean, below everything."""
    low = 0.65 if len(axes) else 0.42
    _leave(figure, below=low)
    if len(axes):
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            loc="lower center",
            ncols=3,
            frameon=False,
            bbox_to_anchor=(0.5, 0.4 / figure.get_figheight()),
        )
    figure.text(0.012, 0.06 / figure.get_figheight(), UNPAIRED, va="bottom", fontsize=8)
