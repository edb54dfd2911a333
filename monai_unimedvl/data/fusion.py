# SPDX-License-Identifier: Apache-2.0
"""Whether a rewritten caption still says what the original said: sides, organs, numbers, what is absent.

The check is by words, not by meaning: it finds what was dropped or turned around, and lets paraphrase through
only where anatomy.yaml knows the words as the same. It errs towards refusing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from monai_unimedvl.data.phrases import templates

NEAR = 4  # words between a side and the organ it belongs to
MILLIMETRES = {"mm": 1.0, "cm": 10.0}
UNITS = r"mm|cm|ml|cc|hu|%|degrees?|years?"
OPPOSITE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Said:
    """What of a text must survive.

    Args:
        sides: "left", "right", "both".
        organs: by the first word of their line in anatomy.yaml.
        sided: (side, organ) that stand together.
        numbers: with their unit, lengths in mm.
        absent: words of which the text says that they are not there.
    """

    sides: frozenset[str]
    organs: frozenset[str]
    sided: frozenset[tuple[str, str]]
    numbers: frozenset[str]
    absent: frozenset[str]


def said(text: str) -> Said:
    """What a text says of sides, organs and numbers."""
    words = text.lower().replace("\u2013", "-")
    found = [(place, "organ", organ) for organ, place in _places(words, _organs())]
    found += [(place, "side", side) for side, place in _places(words, _sides())]
    found.sort()
    sided = set()
    for number, (place, kind, side) in enumerate(found):
        if kind != "side":
            continue
        for after, other, organ in found[number + 1 :]:
            between = words[place:after]
            if re.search(r"[.;:]", between) or len(between.split()) > NEAR:
                break
            if other == "organ":
                sided.add((side, organ))
                break
    return Said(
        frozenset(name for _, kind, name in found if kind == "side"),
        frozenset(name for _, kind, name in found if kind == "organ"),
        frozenset(sided),
        frozenset(_numbers(words)),
        frozenset(_absent(words)),
    )


def changes(original: str, rewritten: str) -> list[str]:
    """What a rewritten text lost or turned around, a phrase each; empty where it kept everything."""
    before, after = said(original), said(rewritten)
    found = [f"side {side!r} is lost" for side in sorted(before.sides - after.sides)]
    found += [f"organ {organ!r} is lost" for organ in sorted(before.organs - after.organs)]
    found += [f"number {number!r} is lost" for number in sorted(before.numbers - after.numbers)]
    found += [f"that there is no {word!r} is lost" for word in sorted(before.absent - after.absent)]
    for side, organ in sorted(before.sided):
        if (side, organ) not in after.sided:
            found.append(f"{side} {organ!r} is lost")
    return found + turned(original, rewritten)


def turned(original: str, rewritten: str) -> list[str]:
    """Organs that the original knows on one side and the rewritten text on the other too, or instead."""
    before, after = said(original).sided, said(rewritten).sided
    found = []
    for side, organ in sorted(before):
        other = OPPOSITE.get(side)
        if other and (other, organ) in after and (other, organ) not in before:
            found.append(f"{side} {organ!r} became {other}")
    return found


def concludes(text: str) -> list[str]:
    """The words by which a description draws a conclusion."""
    words = text.lower()
    return [word for word in _library()["conclusions"] if word in words]


def _library() -> dict[str, Any]:
    return templates("anatomy")


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, plurals too."""
    listed = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{listed})(?:s|es)?(?![\w])")


@functools.cache
def _organs() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((words[0], _pattern(words)) for words in _library()["organs"])


@functools.cache
def _sides() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((side, _pattern(words)) for side, words in _library()["sides"].items())


def _places(words: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> Iterator[tuple[str, int]]:
    for name, pattern in patterns:
        for match in pattern.finditer(words):
            yield name, match.start()


def _numbers(words: str) -> Iterator[str]:
    """Numbers with their unit: "35 mm" of "3.5 cm", "2" of "two"; decimal commas are points."""
    spoken = {word: str(value) for value, word in enumerate(_library()["numbers"])}
    text = re.sub(r"(?<=\d),(?=\d{1,2}(?!\d))", ".", words)
    text = re.sub(r"\b(" + "|".join(spoken) + r")\b", lambda match: spoken[match[1]], text)
    for match in re.finditer(
        rf"(?<![\w.])(\d+(?:\.\d+)?)(?:\s*[x×]\s*(\d+(?:\.\d+)?))?\s*-?({UNITS})?(?![\w])", text
    ):
        unit = match[3] or ""
        for value in filter(None, (match[1], match[2])):
            number = float(value) * MILLIMETRES.get(unit, 1.0)
            yield f"{number:g} {'mm' if unit in MILLIMETRES else unit}".strip()


def _absent(words: str) -> Iterator[str]:
    """The things after "no", "without" and their like, up to the end of the phrase."""
    starts = "|".join(re.escape(word) for word in _library()["negations"])
    pattern = rf"\b(?:{starts})\s+((?:[\w-]+\s*(?:,|\bor\b|\band\b)?\s*){{1,6}})"
    skipped = {
        "a",
        "an",
        "the",
        "any",
        "evidence",
        "of",
        "sign",
        "signs",
        "or",
        "and",
        "is",
        "seen",
        "visible",
    }
    for match in re.finditer(pattern, words):
        for part in re.split(r",|\bor\b", match[1]):
            left = [word for word in part.split() if word not in skipped]
            if left:
                yield re.sub(r"s$", "", left[min(len(left), 2) - 1])
                if "and" in part.split():
                    break
