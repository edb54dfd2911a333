# SPDX-License-Identifier: Apache-2.0
"""A date as people write it: 19370321, 1937-03-21, 21.3.37, 3/21/1937, Mar 21, 1937, 21. März 1937, 昭和...

Day and month in either order, in numbers or words of western languages and Russian; what a year or a month
alone would say is left. The text is one of plain letters: `identifiers` folds it, so that März is Marz.
"""

from __future__ import annotations

import re
from datetime import date

# How the twelve names begin, in English, German, French, Spanish, Italian, Portuguese, Dutch and Russian.
MONTHS = (
    "jan|gen|ene|янв", "feb|fev|fevr|фев", "mar|mrz|maa|мар", "apr|avr|abr|апр", "may|mai|mag|mei|маи|мая",
    "jun|juin|giu|июн", "jul|juil|lug|июл", "aug|aou|ago|авг", "sep|set|сен", "oct|okt|ott|out|окт",
    "nov|ноя", "dec|dez|dic|dek|дек",
)  # fmt: skip
ERAS = (
    ("明治", "m", 1868),
    ("大正", "t", 1912),
    ("昭和", "s", 1926),
    ("平成", "h", 1989),
    ("令和", "r", 2019),
)
SIGN = r"\s?[./\-_,]\s?"  # between numbers
SPACE = r"[\s./\-_,]{0,3}"  # beside a word


def date_of(text: str) -> date | None:
    """The date of 19370321 (DICOM) or 1937.03.21 (before DICOM 3); None of anything else."""
    found = re.fullmatch(r"(\d{4})([.-]?)(\d\d)\2(\d\d)", text)
    try:
        return date(int(found[1]), int(found[3]), int(found[4])) if found else None
    except ValueError:
        return None


def as_written(day: date) -> list[str]:
    """Expressions that find a date in a folded text."""
    y, m, d = f"{day.year:04}", f"0?{day.month}", f"0?{day.day}"
    year = f"(?:{y[:2]})?{y[2:]}"
    word = f"(?:{MONTHS[day.month - 1]})[^\\W\\d_]*"
    the_day = rf"{d}(?:st|nd|rd|th|er|ro|º|o)?"
    of = rf"{SPACE}(?:(?:of|de|di)\s)?"
    full_month, full_day = f"{day.month:02}", f"{day.day:02}"
    forms = [
        y + full_month + full_day, full_day + full_month + y, full_month + full_day + y,
        f"{y}(?:{SIGN}|\\s){m}(?:{SIGN}|\\s){d}", f"{d}\\s{m}\\s{y}", f"{m}\\s{d}\\s{y}",
        f"{d}{SIGN}{m}{SIGN}{year}", f"{m}{SIGN}{d}{SIGN}{year}", f"{y[2:]}{SIGN}{m}{SIGN}{d}",
        f"{the_day}{of}{word}{of}'?{year}", f"{word}{SPACE}{the_day}{SPACE}{year}",
        f"{y}{SPACE}{word}{SPACE}{the_day}",
        rf"{y}\s?[年년]\s?{m}\s?[月월]\s?{d}(?:\s?[日일])?",
    ]  # fmt: skip
    for name, letter, first in ERAS:
        if 1 <= (number := day.year - first + 1) <= 64:
            years = f"(?:{number}|元)" if number == 1 else f"0?{number}"
            forms.append(rf"(?:{name}|(?<![a-z]){letter})\s?\.?{years}\s?[年./-]\s?{m}\s?[月./-]\s?{d}日?")
    return [rf"(?i:(?<!\d)(?:{form})(?!\d))" for form in forms]
