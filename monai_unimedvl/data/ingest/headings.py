# SPDX-License-Identifier: Apache-2.0
"""Findings and impression of a report, by the headings that open its sections.

Radiologists also write headings inside a section (`LUNGS: clear. HEART: enlarged.`), so only known words open
one; any other stays, with what follows it, in the section that it stands in.
"""

from __future__ import annotations

import re

from monai_unimedvl.transforms.structured import HEADINGS

FINDINGS, IMPRESSION, TECHNIQUE, COMPARISON = (
    "|".join(HEADINGS[part]) for part in ("findings", "impression", "technique", "comparison")
)
HEADING = re.compile(
    rf"""(?<![\w*\#-])(?:[*_\#]{{1,4}}[ ]?)?(?=[a-z][^:\n]{{2,60}}:)(?:  # ** and ## as in Markdown
    (?P<findings> (?:{FINDINGS})(?:\s?(?:/|&|and)\s?impressions?)?)
    | (?P<impression> {IMPRESSION}|impressions|conclusions|opinion)
    | (?P<other> {TECHNIQUE}|{COMPARISON}|techniques|comparisons|protocol|exam(?:ination\s(?:type|date))?
        | (?:(?:past|relevant|patient)\s)?(?:(?:clinical|medical|surgical|family|patient)\s)?history
        | (?:clinical\s)?indications?|(?:clinical|relevant|patient)\s(?:information|data)
        | clinical(?:\s(?:question|details|context|statement|diagnosis|problem))?
        | reason(?:\sfor(?:\s\w+){{1,4}})?
        | (?:prior|previous|comparison)\s(?:stud(?:y|ies)|exam(?:ination)?s?)
        | recommendations?|notifications?|communications?|attestation|addend(?:um|a)
        | (?:electronically\s)?signed(?:\sby)?|(?:dictated|transcribed|reported|approved|read)\sby
        | (?:wet|preliminary)\sread(?:ing)?|(?:final|preliminary)\sreport
        | (?:\w+\s)?radiologist|(?:referring|ordering)\s(?:physician|doctor)
    ))(?:\s?\([^():]{{,40}}\))?[*_ \t]{{,4}}:[*_]{{,3}}""",
    re.IGNORECASE | re.VERBOSE,
)
BEGIN = "\n.!?;:-•"  # before what begins a line or sentence


def sections(report: str) -> dict[str, str]:
    """Findings and impression; without a heading of either all of it is findings.

    A heading is a known word alone on a line, or before a colon: anywhere in capitals, in other letters where
    a line or sentence begins. Other sections (history, technique, comparison, recommendation ...) and what
    stands before the first heading are left out. Sections of one kind, such as impression and conclusion, are
    joined.
    """
    report = "\n".join(map(_with_colon, report.split("\n")))
    found: dict[str, list[str]] = {"findings": [], "impression": []}
    kind, start = "", 0
    marks = [mark for mark in HEADING.finditer(report) if _opens(mark, report)]
    for mark in marks:
        named = mark.lastgroup or ""
        if named == kind and not _begins(mark, report):
            continue  # OTHER FINDINGS: stands among the findings
        between = report[start : mark.start()]
        if kind in found and named == "other" and not between.strip(" \t") and not mark[named].isupper():
            continue  # FINDINGS: Exam: limited by motion
        found.get(kind, []).append(report[start : mark.start()].strip())
        kind, start = named, mark.end()
    found.get(kind, []).append(report[start:].strip())
    if not any(mark.lastgroup in found for mark in marks):
        found["findings"] = [report.strip()]
    return {kind: "\n".join(filter(None, said)) for kind, said in found.items() if any(said)}


def _with_colon(line: str) -> str:
    """A line that is a heading and nothing else, with a colon; others as they are."""
    return f"{line.strip()}:" if HEADING.fullmatch(f"{line.strip()}:") else line


def _opens(mark: re.Match[str], report: str) -> bool:
    return mark[mark.lastgroup or 0].isupper() or _begins(mark, report)


def _begins(mark: re.Match[str], report: str) -> bool:
    """Whether a line or sentence begins there; many spaces are as good as a line."""
    before = report[max(0, mark.start() - 9) : mark.start()].rstrip(" \t")
    return not before or before[-1] in BEGIN
