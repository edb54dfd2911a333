# SPDX-License-Identifier: Apache-2.0
"""The numbers of the findings: what stands there in braces is looked up in the results, and never typed.

    {joint|staged|caption, slab|difference}    a pair of arms, a row of its table, and what is told of it
    {2 steps|8 steps|sr4, slab: PSNR|interval} likewise of two settings of a curve and a column of its table
    {understanding, generation|joint|rows|first}    in how many rows of these pairs that side is better
    {planned|plans|token F1}                   of one result, whatever it keeps beside the scores

Told is `difference`, `interval`, `seeds`, `student`, `p` (Holm), `p alone`, `p by volume`, `first`, `second`
(the means), `items`, `images`, `volumes`, `better`, or the name of a baseline.
"""

from __future__ import annotations

import re
from typing import Any

from monai_unimedvl.evaluation.tables import number
from science.comparisons import Curve, Line, Results, Shift, heading, place_words, signed
from science.plan import Question


def told(text: str, question: Question, results: Results) -> str:
    """The text with its braces filled in.

    Raises:
        ValueError: something in braces is not in the results.
    """

    def look(found: re.Match[str]) -> str:
        words = [" ".join(word.split()) for word in found[1].split("|")]
        try:
            return _look(words, question, results)
        except (LookupError, StopIteration) as error:
            raise ValueError(
                f"findings/{question.letter}.md names {{{'|'.join(words)}}}, which is not in the results:"
                " name arms, a row and a column of the page's tables."
            ) from error

    return re.sub(r"\{([^{}]+)\}", look, text)


def _look(words: list[str], question: Question, results: Results) -> str:
    if len(words) == 3:
        arm, part, key = words
        return f"{next(iter(results.of(question.arms[arm], 1).values()))[part][key]:.4g}"
    first, second, place, what = words
    if place == "rows":
        return str(len(rows(question, results, first.split(", "), second, what)))
    if question.pairs:
        return _of_line(pair(question, results, first, second, place), what)
    return _of_curve(results.curves(question), first, second, place, what)


def rows(question: Question, results: Results, firsts: list[str], second: str, verdict: str) -> list[Line]:
    """The rows of some pairs that have this verdict, or, where it is "all", every one of them."""
    known = {(a, b) for a, b in question.pairs}
    if missing := [name for name in firsts if (name, second) not in known]:
        raise LookupError(missing[0])
    found = [x for x in results.lines(question) if x.first in firsts and x.second == second]
    return [x for x in found if verdict in ("all", x.verdict)]


def pair(question: Question, results: Results, first: str, second: str, place: str) -> Line:
    """One row of a table of pairs, by the words of its first column."""
    return next(
        x
        for x in results.lines(question)
        if (x.first, x.second, place_words(x.place)) == (first, second, place)
    )


def _of_line(line: Line, what: str) -> str:
    found = _of_shift(line.metric, line.difference, what)
    if found is not None:
        return found
    ends = line.over_seeds or ()
    more = {
        "seeds": ", ".join(signed(line.metric, x) for x in line.by_seed),
        "student": " to ".join(signed(line.metric, x) for x in ends),
        "p": f"{line.adjusted:.3f}", "volumes": str(len(line.volumes)), "better": line.verdict,
        **{name: number(line.metric, x) for name, x in line.baselines.items()},
    }  # fmt: skip
    return more[what]


def _of_curve(curves: list[Curve], first: str, second: str, place: str, what: str) -> str:
    curve, column = next((x, c) for x in curves for c in x.columns if heading(c) == place)
    beside: dict[str, float] = curve.found["baselines"].get("/".join(column), {})
    if what in beside:
        return number(column[1], beside[what])
    shift: Shift | None = None
    if first == curve.base:
        shift = curve.shifts[second, column]
    for (ending, other), shifts in curve.twins.items():
        if (second, column) in shifts and first in (other, second.removesuffix(ending) + other):
            shift = shifts[second, column]
    if shift is None:
        raise LookupError(second)
    more = {"p": f"{shift.adjusted:.3f}", "p by volume": f"{shift.by_volume:.3f}"}
    return more[what] if what in more else str(_of_shift(column[1], shift.difference, what))


def _of_shift(metric: str, difference: Any, what: str) -> str | None:
    found = {
        "difference": signed(metric, difference.value),
        "interval": f"{signed(metric, difference.low)} to {signed(metric, difference.high)}",
        "p alone": f"{difference.p:.3f}", "items": str(difference.n), "images": str(difference.clusters),
        "first": number(metric, difference.a), "second": number(metric, difference.b),
    }  # fmt: skip
    return found.get(what)
