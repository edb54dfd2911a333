# SPDX-License-Identifier: Apache-2.0
"""README.md and the plots, out of nothing but the configurations, the committed results and the findings.

Each pair of arms is compared on the same items. The score of an item is its mean over the seeds that both
arms have run; the interval of the difference is a bootstrap over the images that items belong to. Beside it
stands the difference of each seed, and, from three seeds on, Student's interval over them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation.intervals import Difference, compare, holm, interval
from monai_unimedvl.evaluation.tables import number
from science import plan
from science.plan import Arm, Question

RESAMPLES = 2000
STUDENT = {2: 4.303}  # 97.5 % quantile by degrees of freedom; three seeds have two
LABELS = {"test": "slab", "test_subject": "subject"}
Table = list[list[str]]


@dataclass(frozen=True)
class Scores:
    """One arm's scores of one metric: of each item over the seeds, of each seed over the items."""

    items: dict[str, float]
    clusters: dict[str, str]
    seeds: dict[int, dict[str, float]]


@dataclass(frozen=True)
class Line:
    """A pair of arms on one metric of one section."""

    place: str
    metric: str
    first: str
    second: str
    difference: Difference
    by_seed: list[float]
    baselines: dict[str, float]

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the differences of seeds; None with fewer than three."""
        if len(self.by_seed) - 1 not in STUDENT:
            return None
        half = STUDENT[len(self.by_seed) - 1] * stdev(self.by_seed) / len(self.by_seed) ** 0.5
        return mean(self.by_seed) - half, mean(self.by_seed) + half


class Results:
    """The committed results of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, arm: Arm, seeds: int) -> dict[int, dict[str, Any]]:
        """seed -> result, of what has run."""
        found = {seed: plan.result(arm, seed, self.folder) for seed in range(seeds)}
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
        found = []
        for task, metric in question.metrics:
            for section in LABELS:
                place = f"{section}/{task}"
                for first, second in question.pairs:
                    line = self._line(question, first, second, place, metric)
                    found += [line] if line else []
        return found

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
        about = next(iter(self.of(arm, question.seeds).values()))["baselines"]
        return Line(place, metric, first, second, difference, by_seed, about.get(f"{place}/{metric}", {}))


@cache
def read_items(folder: Path, digest: str) -> dict[str, list[list[str]]]:
    """place -> [id, picture] of each item."""
    found: dict[str, list[list[str]]] = json.loads((folder / f"items-{digest}.json").read_text("utf8"))
    return found


def missing(question: Question, results: Results) -> list[str]:
    """The arms and seeds that have not run."""
    return [
        f"{arm.label}, seed {seed}"
        for arm in question.arms.values()
        for seed in range(question.seeds)
        if seed not in results.of(arm, question.seeds)
    ]


def verdict(line: Line, adjusted: float) -> str:
    """Which side is better, where chance over items is an unlikely cause and all seeds agree."""
    signs = {np.sign(round(x, 9)) for x in line.by_seed}
    if adjusted >= 0.05 or len(signs) != 1:
        return "none shown"
    return "second" if line.difference.value > 0 else "first"


def pair_tables(question: Question, results: Results) -> Iterator[tuple[str, Table]]:
    """For each pair its heading and table."""
    lines = results.lines(question)
    adjusted = holm({str(n): line.difference.p for n, line in enumerate(lines)})
    for first, second in question.pairs:
        rows: Table = []
        for n, line in enumerate(lines):
            if (line.first, line.second) != (first, second):
                continue
            told, metric, (section, task) = line.difference, line.metric, line.place.split("/")
            each = ", ".join(signed(metric, x) for x in line.by_seed)
            value, low, high = (signed(metric, x) for x in (told.value, told.low, told.high))
            ends = " to ".join(signed(metric, x) for x in line.over_seeds or ())
            beside = "; ".join(f"{k} {number(metric, v)}" for k, v in line.baselines.items())
            rows.append(
                [
                    f"{task}, {LABELS[section]}", metric, f"{told.n} / {told.clusters}",
                    number(metric, told.a), number(metric, told.b), f"**{value}** ({low} to {high})",
                    each, ends, f"{adjusted[str(n)]:.3f}", verdict(line, adjusted[str(n)]), beside,
                ]
            )  # fmt: skip
        if rows:
            names = [label(question, name) for name in (first, second)]
            head = ["task", "metric", "items / images", *names, "second less first (95 %, images)", "by seed",
                    "95 %, seeds", "p, Holm", "better", "baselines"]  # fmt: skip
            yield f"{names[1]} against {names[0]}", [head, *rows]


def label(question: Question, name: str) -> str:
    """An arm in words, and how it was asked."""
    arm, _, setting = name.partition("/")
    return question.arms[arm].label + (f", {setting}" if setting else "")


def signed(metric: str, value: float) -> str:
    """A difference with its sign."""
    text = number(metric, value)
    return text if text.startswith("-") else f"+{text}"


def settings_tables(question: Question, results: Results) -> Iterator[Table]:
    """Of a curve: places that were measured at the same settings side by side, a row a setting.

    A cell is the mean with its interval at the reference, and elsewhere the mean with the paired difference
    to the reference. `against` compares settings whose names differ in their endings alone.
    """
    values = question.values
    for arm in question.arms.values():
        for found in results.of(arm, 1).values():
            groups: dict[tuple[str, ...], list[tuple[str, str]]] = {}
            for place, settings in found["scores"].items():
                for metric in next(iter(settings.values())):
                    if any(any(one[metric]) for one in settings.values()):
                        groups.setdefault(tuple(settings), []).append((place, metric))
            for names, columns in groups.items():
                base = next((name for name in values.get("references", ()) if name in names), names[0])
                cells = [[_cell(found, results, *column, name, base) for column in columns] for name in names]
                head = ["setting", *(f"{_place(place)}: {metric}" for place, metric in columns)]
                rows = [[f"{name}{_dropped(found, columns[0][0], name)}", *row]
                        for name, row in zip(names, cells, strict=True)]  # fmt: skip
                yield [head, *rows]
                for ending, other in values.get("against", {}).items():
                    rows = [
                        [name.removesuffix(ending), *(_cell(found, results, *c, name, twin) for c in columns)]
                        for name in names
                        if name.endswith(ending) and (twin := name.removesuffix(ending) + other) in names
                    ]
                    yield [[f"{ending.strip(', ')}, less {other.strip(', ')}", *head[1:]], *rows]


def _place(place: str) -> str:
    """In words: "sr4, slab"."""
    section, task = place.split("/")
    return f"{task}, {LABELS[section]}" if section in LABELS else section


def _dropped(found: dict[str, Any], place: str, name: str) -> str:
    """The share of tokens that a way of pruning really dropped."""
    share = found.get("measured", {}).get(f"{place}/{name}", {}).get("dropped")
    return "" if share is None else f" ({100 * share:.0f} %)"


def _cell(found: dict[str, Any], results: Results, place: str, metric: str, name: str, base: str) -> str:
    """Mean with its interval, or with its paired difference to another setting."""
    if name == base:
        value, low, high, _ = point(found, results, place, name, metric)
        return f"{number(metric, value)} ({number(metric, low)} to {number(metric, high)})"
    rows = read_items(results.folder, found["items"])[place]
    sides = []
    for setting in (base, name):
        values = zip(rows, found["scores"][place][setting][metric], strict=True)
        sides.append({item: float(x) for (item, _), x in values if x is not None})
    known = sides[0].keys() & sides[1].keys()
    told = compare(
        *({item: side[item] for item in known} for side in sides),
        clusters={item: cluster for item, cluster in rows if item in known}, resamples=RESAMPLES,
    )  # fmt: skip
    low, value, high = (signed(metric, x) for x in (told.low, told.value, told.high))
    return f"{number(metric, told.b)}, {value} ({low} to {high})"


def point(found: dict[str, Any], results: Results, place: str, setting: str, metric: str) -> Any:
    """Mean, low, high and number of items of a setting."""
    rows = read_items(results.folder, found["items"])[place]
    values = found["scores"][place][setting][metric]
    known = [(x, c) for x, (_, c) in zip(values, rows, strict=True) if x is not None]
    ends = interval([x for x, _ in known], clusters=[c for _, c in known], resamples=RESAMPLES)
    return mean(x for x, _ in known), *ends, len(known)


def budget(question: Question, results: Results) -> str:
    """What the arms cost and where they come from."""
    rows = []
    for arm in question.arms.values():
        found = results.of(arm, question.seeds)
        if found:
            seconds = [one["cpu_seconds"] for one in found.values()]
            steps = arm.config["training"]["steps"] if "curve" not in arm.config else 0
            updates = f", {steps} updates" if steps else ""
            spent = " + ".join(f"{each:.0f}" for each in seconds)
            rows.append(f"{arm.label}: seeds {len(found)} of {question.seeds}{updates}, {spent} CPU seconds")
    return "; ".join(rows)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


HEAD = """# The paper's claims, put to the test at small scale

Written by `run.py --report` from the files in `configs/`, `results/` and `findings/`; only the paragraphs
under "What holds" are written by hand, after seeing the numbers. A result names its configuration, weights,
vision encoder, commit and CPU seconds, and holds its loss curve and the score of every item.

    python tests/benchmarks/science/run.py --only a b            # what is done is not done again
    python tests/benchmarks/science/run.py --only a --seeds 1
    python tests/benchmarks/science/run.py --report

Checkpoints lie in the cache folder, and a killed arm goes on from its last one. One thread of a CPU; an arm
may take at most 15 CPU minutes. All arms of a and b begin with one pretrained vision encoder (its training is
in the seconds of the first arm); a seed draws the other weights, the order of samples, times and noise, and
arms of a seed begin alike.

How to read the tables: arms are compared item by item on a fixed sample of held-out items, `slab` (test: a
held-out slab of a volume that was trained on) and `subject` (test_subject: somebody never trained on). The
interval is a bootstrap over images, with the mean over seeds as the score of an item; `by seed` is the
difference of each seed alone, and its Student interval follows from three seeds. p is of sign flips by
image, adjusted (Holm) for all rows of the question. `better` names a side only where p < 0.05 and all seeds
agree: an absent verdict is no proof of equality. In (e) and (f) a cell is the mean with its interval at the
reference setting, and elsewhere the mean and its paired difference to the reference; what is 0 at every
setting has no column. Networks of about two million parameters, minutes of training, 64 x 64 pixels, few
subjects: no clinical claim, and none about the released model, follows from any of this.
"""


def sources(here: Path) -> str:
    """sha256 of all that the page is made of: configurations, results and findings."""
    found = hashlib.sha256()
    for pattern in ("configs/*.yaml", "results/*.json", "findings/*.md"):
        for path in sorted(here.glob(pattern)):
            found.update(f"{path.relative_to(here).as_posix()} {path.stat().st_size}\n".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def render(here: Path) -> str:
    """The page."""
    parts = [HEAD, f"<!-- made of {sources(here)} -->\n"]
    results = Results(here / "results")
    for letter in plan.LETTERS:
        if not (here / "configs" / f"{letter}.yaml").is_file():
            continue
        question = plan.question(letter, here / "configs")
        parts.append(
            f"## ({letter}) {question.title}\n\n{question.question} [configuration](configs/{letter}.yaml)\n"
        )
        if absent := missing(question, results):
            parts.append("Not run yet: " + "; ".join(absent) + ".\n")
        if spent := budget(question, results):
            parts.append(f"Run: {spent}.\n")
        for heading, table in pair_tables(question, results):
            parts.append(f"**{heading}**\n\n{markdown(table)}\n")
        if not question.pairs:
            parts += [markdown(table) + "\n" for table in settings_tables(question, results)]
        if (here / "plots" / f"{letter}.png").is_file():
            parts.append(f"![{question.title}](plots/{letter}.png)\n")
        finding = here / "findings" / f"{letter}.md"
        if finding.is_file() and not absent:  # what is said of a result goes with it
            parts.append("**What holds.** " + finding.read_text("utf8").strip() + "\n")
    return "\n".join(parts)


def write_all(here: Path) -> None:
    """Plots and page."""
    from science import plots

    results = Results(here / "results")
    for letter in plan.LETTERS:
        if (here / "configs" / f"{letter}.yaml").is_file():
            plots.draw(plan.question(letter, here / "configs"), results, here / "plots" / f"{letter}.png")
    write(here / "README.md", render(here).encode())
