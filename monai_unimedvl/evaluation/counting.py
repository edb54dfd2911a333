# SPDX-License-Identifier: Apache-2.0
"""One prediction file, many protocols: what each counts, with intervals, and what it leaves out.

    counts = count(read_predictions("p.parquet").rows)
    print(table(counts))

Lines of a protocol: closed, open, choice; micro, the mean over all items that count; macro, the mean of the
kinds. Benchmarks, sections, tasks and settings of one file have lines of their own, and so have languages in
a protocol that keeps them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from monai_unimedvl.evaluation.intervals import interval
from monai_unimedvl.evaluation.labels import Labeller, label_f1, radeval
from monai_unimedvl.evaluation.overlap import overlap
from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols import KINDS, PROTOCOLS, Protocol, Scored, protocol, score
from monai_unimedvl.evaluation.protocols.judge import SAME_MEANING, Judge, JudgePrompt, judged
from monai_unimedvl.evaluation.protocols.strict import refuses

ALL = "all"
FEW = 10  # patients or images: an interval drawn by fewer is told
SORTS = ("benchmark", "section", "task", "setting")  # of a file with several of one, each has its own lines


@dataclass(frozen=True)
class Line:
    """One number of a protocol.

    Args:
        group: "all", or the value of a field that is kept apart.
        kind: of `KINDS`, or "micro" or "macro". measure: what is averaged.
        n: items in the denominator.
        value: their mean. low, high: 95 % bootstrap interval, by patient or image where these are known.
        clusters: patients or images that the interval is drawn by; 0 if by items.
    """

    group: str
    kind: str
    measure: str
    n: int
    value: float
    low: float
    high: float
    clusters: int = 0


@dataclass(frozen=True)
class Count:
    """What a protocol makes of a prediction file.

    Args:
        rows: of the file. empty, refused: answers that say nothing, that decline.
        left_out: reason -> items that do not count.
        stops: ids of items at which the public code ends, and how; then it has no number, and the lines count
            these as wrong.
        moved: fault -> items whose score it changes, for the faults that were asked for.
        judge: model and prompt, "" without one. unparsed: replies that could not be read, counted as wrong.
        details: measure -> mean over the items that have it.
    """

    protocol: str
    rows: int
    empty: int
    refused: int
    lines: list[Line]
    left_out: dict[str, int]
    stops: dict[str, str] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    judge: str = ""
    unparsed: int = 0
    details: dict[str, float] = field(default_factory=dict)


def count(
    rows: Sequence[Prediction], names: Iterable[str] = tuple(PROTOCOLS), *, judge: Judge | None = None,
    prompt: JudgePrompt = SAME_MEANING, details: bool = False, seed: int = 0,
) -> list[Count]:  # fmt: skip
    """What each protocol makes of the rows of a prediction file.

    Args:
        names: as `protocol` takes them, such as "medevalkit-rule:faithful".
        judge: asked where a protocol lets a judge decide; strict-v1 and llavamed-v1 never do.
        details: further measures too.
        seed: of the intervals.
    """
    empty = sum(not row.answer.strip() for row in rows if row.truth.strip())  # a drawing says nothing
    refused = sum(refuses(row.answer) for row in rows)
    found = []
    for name in names:
        chosen = protocol(name)
        scored = score(rows, chosen, details=details)
        if judge is not None and chosen.name in ("medevalkit-rule", "vlmevalkit-mcq"):
            scored = judged(scored, judge, prompt)
        found.append(
            Count(
                str(chosen), len(rows), empty, refused, lines(scored, seed=seed),
                dict(Counter(why for why in scored.why if why).most_common()),
                {rows[place].id: said for place, said in scored.stops.items()}, _moved(rows, chosen, scored),
                scored.judge, scored.unparsed,
                {name: _mean([value for value in values if value is not None])
                 for name, values in scored.details.items()},
            )
        )  # fmt: skip
    return found


def count_texts(
    rows: Sequence[Prediction], *, labeller: Labeller | None = None, wordnet: str | None = None,
    metrics: Sequence[str] = (), download: bool = False, seed: int = 0,
) -> list[Count]:  # fmt: skip
    """The measures of reports among the rows, of each language apart; none without reports.

    Args:
        labeller: also F1 of its labels. wordnet: folder, for METEOR with synonyms.
        metrics: of RadEval, if it is installed. download: let it fetch its models.
    """
    counts = []
    for language in sorted({row.language for row in rows if row.answer_type == "report"}):
        some = [row for row in rows if row.answer_type == "report" and row.language == language]
        said, true = [row.answer for row in some], [row.truth for row in some]
        found = overlap(
            said, [(row.truth, *row.references) for row in some], language=language, wordnet=wordnet
        )
        told = [_text_line(language, name, one.value, one.each, some, seed) for name, one in found.items()]
        if labeller is not None:
            labels = label_f1(labeller(said), labeller(true))
            for name, value in (("label F1, micro", labels.micro), ("label F1, macro", labels.macro)):
                told.append(Line(language, "report", name, len(some), value, math.nan, math.nan))
        if metrics:
            for name, values in radeval(said, true, metrics, download=download).items():
                told.append(_text_line(language, name, _mean(values), values, some, seed))
        empty, refused = (sum(map(test, said)) for test in (lambda text: not text.strip(), refuses))
        counts.append(Count("texts 1", len(some), empty, refused, told, {}))
    return counts


def lines(scored: Scored, *, seed: int = 0) -> list[Line]:
    """The numbers of a protocol."""
    held = [row for row, hit in zip(scored.rows, scored.hits, strict=True) if hit is not None]
    varying = [name for name in SORTS if len({getattr(row, name) for row in held}) > 1]
    names = [*varying, *scored.protocol.apart]
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(scored.rows):
        if scored.hits[place] is not None:
            words = [word for name in names if (word := getattr(row, name))]
            groups.setdefault(", ".join(words) or ALL, []).append(place)
    found = []
    for group, places in sorted(groups.items()):
        kinds = [kind for kind in KINDS if any(scored.kinds[place] == kind for place in places)]
        means = []
        for kind in [*kinds, *(["micro"] if len(kinds) > 1 else [])]:
            some = [place for place in places if kind in ("micro", scored.kinds[place])]
            value, low, high, clusters = _interval(scored, some, seed)
            measure = scored.protocol.measures.get(kind, "mean over items")
            found.append(Line(group, kind, measure, len(some), value, low, high, clusters))
            means.append(value)
        if len(kinds) > 1:
            macro = _mean(means[:-1])
            found.append(Line(group, "macro", "mean over kinds", len(places), macro, math.nan, math.nan))
    return found


def table(counts: Iterable[Count]) -> str:
    """Markdown: a line for each number, and below what is left out, where codes stop, what faults moved."""
    head = "| protocol | of | kind | measure | n | value (95 %) |"
    told, below = [head, "|---|---|---|---|--:|--:|"], []
    for one in counts:
        for line in one.lines:
            span = "" if math.isnan(line.low) else f" ({line.low:.3f} to {line.high:.3f})"
            cells = (
                one.protocol,
                line.group,
                line.kind,
                line.measure,
                str(line.n),
                f"{line.value:.3f}{span}",
            )
            told.append(f"| {' | '.join(cells)} |")
        if not one.lines:
            told.append(f"| {one.protocol} | all | | nothing counts | 0 | |")
        below += [f"- {one.protocol}: {note}" for note in notes(one)]
    rows = next(
        (f"{c.rows} rows, {c.empty} empty answers, {c.refused} that decline to answer." for c in counts), ""
    )
    return "\n".join([*told, "", rows, *below])


def as_json(counts: Iterable[Count]) -> list[dict[str, Any]]:
    """The same as JSON can say it: no NaN."""
    found = [asdict(one) for one in counts]
    for one in found:
        for line in one["lines"]:
            line |= {name: None for name in ("low", "high") if math.isnan(line[name])}
    return found


def notes(one: Count) -> Iterable[str]:
    """What to know of the numbers of a protocol: what it leaves out, where its code ends, what faults do."""
    if few := [line for line in one.lines if 0 < line.clusters < FEW]:
        least = min(line.clusters for line in few)
        yield f"{len(few)} intervals are drawn by few patients or images, {least} at least: they say little."
    if one.judge:
        yield f"judged by {one.judge}; {one.unparsed} replies could not be read and count as wrong."
    if one.stops:
        name, said = next(iter(one.stops.items()))
        yield (
            f"its public code gives no number for this file: it ends at {len(one.stops)} of the rows, the "
            f"first is {name} ({said}); above they count as wrong."
        )
    for why, number in one.left_out.items():
        yield f"{number} left out: {why}."
    for fault, number in one.moved.items():
        told = next(each for each in protocol(one.protocol.split()[0]).faults if each.name == fault)
        if number:
            yield f"fault {fault} changes {number} row{'s' * (number > 1)}: {told.what}"
    if still := [fault for fault, number in one.moved.items() if not number]:
        yield f"without effect on these scores: {', '.join(still)}."


def _moved(rows: Sequence[Prediction], chosen: Protocol, scored: Scored) -> dict[str, int]:
    """Rows that each fault changes by itself, against the mended protocol."""
    if not chosen.faithful:
        return {}
    mended = score(rows, protocol(chosen.name))
    found = {}
    for fault in chosen.faults:
        if fault.name in chosen.faithful:
            other = score(rows, protocol(chosen.name, faithful=[fault.name]))
            pairs = zip(mended.hits, other.hits, strict=True)
            found[fault.name] = len({n for n, (a, b) in enumerate(pairs) if a != b} | set(other.stops))
    return found


def _text_line(
    language: str, name: str, value: float, each: Sequence[float], rows: Sequence[Prediction], seed: int
) -> Line:
    """The line of a measure; an interval only where the measure is the mean of its texts."""
    low, high, clusters = math.nan, math.nan, 0
    if not math.isnan(value) and math.isclose(value, _mean(each), abs_tol=1e-9):
        _, low, high, clusters = _spread(each, rows, seed)
    return Line(language, "report", name, len(each), value, low, high, clusters)


def _interval(scored: Scored, places: Sequence[int], seed: int) -> tuple[float, float, float, int]:
    values = [float(hit) for place in places if (hit := scored.hits[place]) is not None]
    return _spread(values, [scored.rows[place] for place in places], seed)


def _spread(
    values: Sequence[float], rows: Sequence[Prediction], seed: int
) -> tuple[float, float, float, int]:
    """Mean and interval, by patient, else by image, where some share one; and how many of these."""
    clusters = [row.patient or row.image or f"row {n}" for n, row in enumerate(rows)]
    number = len(set(clusters))
    apart = number == len(clusters)
    low, high = interval(values, clusters=None if apart else clusters, seed=seed)
    return _mean(values), low, high, 0 if apart else number


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
