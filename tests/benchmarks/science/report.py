# SPDX-License-Identifier: Apache-2.0
"""README.md and the plots, out of nothing but the configurations, the committed results and the findings."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from monai_unimedvl.atomic import write
from monai_unimedvl.bundle import load
from monai_unimedvl.evaluation.asking import weights_hash
from monai_unimedvl.evaluation.tables import number
from science import facts, plan
from science.comparisons import (
    Column,
    Curve,
    Line,
    Results,
    Shift,
    counts,
    heading,
    place_words,
    read_items,
    signed,
)
from science.plan import Question

Table = list[list[str]]


def missing(question: Question, results: Results) -> list[str]:
    """The arms and seeds that have not run."""
    return [
        f"{arm.label}, seed {seed}"
        for arm in question.arms.values()
        for seed in range(question.seeds)
        if seed not in results.of(arm, question.seeds)
    ]


def pair_tables(question: Question, results: Results) -> Iterator[tuple[str, Table]]:
    """For each pair its heading and table."""
    for first, second in question.pairs:
        chosen = [line for line in results.lines(question) if (line.first, line.second) == (first, second)]
        if chosen:
            names = [label(question, name) for name in (first, second)]
            head = ["task", "metric", "items / images / volumes", *names,
                    "second less first (95 %, images)", "by seed", "95 %, seeds", "p, Holm", "better",
                    "baselines"]  # fmt: skip
            yield f"{names[1]}, against {names[0]}", [head, *map(_row, chosen)]


def _row(line: Line) -> list[str]:
    told, metric = line.difference, line.metric
    value, low, high = (signed(metric, x) for x in (told.value, told.low, told.high))
    return [
        place_words(line.place), metric, f"{told.n} / {told.clusters} / {len(line.volumes)}",
        number(metric, told.a), number(metric, told.b), f"**{value}** ({low} to {high})",
        ", ".join(signed(metric, x) for x in line.by_seed),
        " to ".join(signed(metric, x) for x in line.over_seeds or ()),
        f"{line.adjusted:.3f}", line.verdict,
        "; ".join(f"{name} {number(metric, x)}" for name, x in line.baselines.items()),
    ]  # fmt: skip


def label(question: Question, name: str) -> str:
    """An arm in words, and how it was asked."""
    arm, _, setting = name.partition("/")
    return question.arms[arm].label + (f", {setting}" if setting else "")


def settings_tables(question: Question, results: Results) -> Iterator[Table]:
    """Of a curve: places that were measured at the same settings side by side, a row a setting.

    A cell is the mean with its interval at the reference, and elsewhere the mean with the paired difference
    to the reference. Below stand the baselines, and then settings against those that differ in their endings.
    """
    for curve in results.curves(question):
        listed = read_items(results.folder, curve.found["items"])
        head = [f"{heading(c)} ({counts(listed[c[0]])})" for c in curve.columns]
        rows: Table = []
        for name in curve.names:
            cells = [
                _level(results, curve, c) if name == curve.base else _cell(c[1], curve.shifts[name, c])
                for c in curve.columns
            ]
            rows.append([f"{name}{_dropped(curve, name)}", *cells])
        beside = [curve.found["baselines"].get("/".join(c), {}) for c in curve.columns]
        for kind in dict.fromkeys(kind for one in beside for kind in one):
            values = zip(curve.columns, beside, strict=True)
            cells = [number(c[1], one[kind]) if kind in one else "" for c, one in values]
            rows.append([f"*{kind}*", *cells])
        yield [["setting (items / images / volumes)", *head], *rows]
        for (ending, other), shifts in curve.twins.items():
            names = dict.fromkeys(name for name, _ in shifts)
            cells_of = {
                name: [_cell(c[1], shifts[name, c], volumes=True) for c in curve.columns] for name in names
            }
            first = f"{ending.strip(', ')}, less {other.strip(', ')}"
            yield [[first, *head], *([name.removesuffix(ending), *row] for name, row in cells_of.items())]


def _dropped(curve: Curve, name: str) -> str:
    """The share of tokens that a way of pruning really dropped, of each column."""
    measured = curve.found.get("measured", {})
    shares = [measured.get(f"{place}/{name}", {}).get("dropped") for place, _ in curve.columns]
    told = [f"{100 * share:.0f}" for share in shares if share is not None]
    return f" ({', '.join(told if len(set(told)) > 1 else told[:1])} %)" if told else ""


def _level(results: Results, curve: Curve, column: Column) -> str:
    value, low, high = results.point(curve.found, column[0], curve.base, column[1])
    return f"{number(column[1], value)} ({number(column[1], low)} to {number(column[1], high)})"


def _cell(metric: str, shift: Shift, *, volumes: bool = False) -> str:
    """Mean, with its paired difference to another setting."""
    told = shift.difference
    low, value, high = (signed(metric, x) for x in (told.low, told.value, told.high))
    more = f", by volume {shift.by_volume:.3f}" if volumes else ""
    return f"{number(metric, told.b)}, {value} ({low} to {high}), p {shift.adjusted:.3f}{more}"


def budget(question: Question, results: Results) -> str:
    """What the arms cost, where their results lie, and which bundle they began with."""
    rows = []
    for arm in question.arms.values():
        found = results.of(arm, question.seeds)
        if found:
            steps = arm.config["training"]["steps"] if "curve" not in arm.config else 0
            updates = f", {steps} updates" if steps else ""
            links = ", ".join(f"[{seed}](results/{arm.name}-seed{seed}.json)" for seed in found)
            spent = " + ".join(f"{one['cpu_seconds']:.0f}" for one in found.values())
            rows.append(f"{arm.label}: seeds {links} of {question.seeds}{updates}, {spent} CPU seconds")
    return "; ".join(rows)


def begun_with(question: Question, results: Results) -> str:
    """The bundle and weights that the arms of a question began with; nothing where it has none."""
    kept = [arm for arm in question.arms.values() if "bundle" in arm.config]
    bare = [arm for arm in kept if "curve" in arm.config or not arm.config["training"]["steps"]]
    marks = {one["weights"] for arm in bare for one in results.of(arm, 1).values()}
    if not marks:
        return ""
    names = sorted({arm.config["bundle"] for arm in kept})
    now = marks == {shipped(name) for name in names}
    about = "the ones that the bundle has now" if now else "not the ones that the bundle has now"
    return f"Weights: {', '.join(names)}, sha256 {', '.join(sorted(one[:12] for one in marks))}, {about}."


@cache
def shipped(bundle: str) -> str:
    """The hash of the weights that a bundle has now."""
    return weights_hash(load(bundle)[0])


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


HEAD = """# The paper's claims, put to the test at small scale

Written by `run.py --report` from the files in `configs/`, `results/` and `findings/`; only the sentences
under "What holds" are written by hand, after seeing the numbers, and the numbers in them are looked up in
the results.

    python tests/benchmarks/science/run.py --only a b            # what is done is not done again
    python tests/benchmarks/science/run.py --only a --seeds 1
    python tests/benchmarks/science/run.py --report

Checkpoints lie in the cache folder, and a killed arm goes on from its last one. One thread of a CPU; an arm
may take at most 15 CPU minutes. All arms of a and b begin with one pretrained vision encoder; a seed draws
the other weights, the order of samples, times and noise, and arms of a seed begin alike. CPU seconds are
those of training and scoring together (and of the encoder, in the first arm): they do not compare the
training of arms. A result holds its configuration, the sha256 of its weights, the score of every item, and,
where something was trained, the loss curve: the list `log` (step, loss of text, loss of flow). The numbers
of seeds below link to it.

How to read the tables: arms are compared item by item on a fixed sample of held-out items, `slab` (test: a
held-out slab of a volume of which other slices were trained on) and `subject` (test_subject: volumes of
which nothing was trained on). Volumes are what the images are slices of, or cut from. The interval is a
bootstrap over images, with the mean over seeds as the score of an item; `by seed` is the difference of each
seed alone, and its Student interval follows from three seeds. p is of sign flips by image, adjusted (Holm)
for all rows of the question; it cannot be smaller than 1/2001 before that. `better` names a side only where
p < 0.05 and all seeds agree: an absent verdict is no proof of equality. In (e) and (f) a cell is the mean
with its interval at the reference setting, and elsewhere the mean, its paired difference to the reference
and p, adjusted for all cells of its table; baselines stand below in italics, and what is 0 at every setting
has no column.

What intervals and p do not cover: images of one volume are neighbours, not independent witnesses. Every
item of T1 to T2, T1 to PD and PD to T2 is a slice of one volume (avg152T1), every item of T2 to T1 of one
(avg152T2), and every item of T1 to grey matter of one (icbm09a); tissue masks come from five. All of these
are averages over the people of one group (ICBM152): translation intervals are over slices of one averaged
brain, and nothing is inferred beyond it. Networks of 2.5 million parameters (a to d) and the shipped nano
of 4.0 million (e to g), minutes of training, 64 x 64 pixels: no clinical claim, and none about the released
model, follows from any of this.
"""

OLD = """Where results come from: those of new runs name their commit, the sha256 of the code and
configurations that made them, and whether that code differed from the commit. {old} of the {all} results
here lack the last two: they name the commit that was checked out, and what stood uncommitted beside it is
not known. The commit that joint, seed 0 names (d478c31) is from before this folder; the one that the six
runs "as many samples" name (29214bb) is from before their arms. The others name commits in which their
configuration stands.
"""


def provenance(here: Path) -> str:
    """What is not known of the code that made the committed results; nothing once all of them name it."""
    found = [json.loads(path.read_text("utf8"))["about"] for path in (here / "results").glob("*-seed*.json")]
    old = sum("sources" not in about for about in found)
    return OLD.format(old=old, all=len(found)) if old else ""


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
    results = Results(here / "results")
    parts = [HEAD, provenance(here), f"<!-- made of {sources(here)} -->\n"]
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
            parts.append(f"Run: {spent}. {begun_with(question, results)}".strip() + "\n")
        for name, table in pair_tables(question, results):
            parts.append(f"**{name}**\n\n{markdown(table)}\n")
        if not question.pairs:
            parts += [markdown(table) + "\n" for table in settings_tables(question, results)]
        if (here / "plots" / f"{letter}.png").is_file():
            parts.append(f"![{question.title}](plots/{letter}.png)\n")
        finding = here / "findings" / f"{letter}.md"
        if finding.is_file() and not absent:  # what is said of a result goes with it
            said = facts.told(finding.read_text("utf8"), question, results)
            parts.append(_wrapped(f"**What holds.** {said}"))
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    """Paragraphs of the page's width."""
    paragraphs = [" ".join(one.split()) for one in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(one, 116, break_on_hyphens=False) for one in paragraphs) + "\n"


def write_all(here: Path) -> None:
    """Plots and page."""
    from science import plots

    results = Results(here / "results")
    for letter in plan.LETTERS:
        if (here / "configs" / f"{letter}.yaml").is_file():
            plots.draw(plan.question(letter, here / "configs"), results, here / "plots" / f"{letter}.png")
    write(here / "README.md", render(here).encode())
