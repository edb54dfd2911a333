# SPDX-License-Identifier: Apache-2.0
"""Scores of words: exact match and token F1 after one normalisation, so that both read a text alike."""

from __future__ import annotations

import re
from collections import Counter

PLANES = ("axial", "coronal", "sagittal")
# as the atlas captions say them; the longer name first, for "T1 with contrast" holds "T1"
CONTRASTS = (
    "T1 with contrast", "fluorescence", "fundus", "SPECT", "PET", "EPI", "H&E", "IHC", "CT", "T1", "T2", "PD",
)  # fmt: skip


HYPHEN = re.compile(r"(?<=\w)-(?=\w)|(?<!\w)-(?!\d)")  # not the signs of "ER-" and "-5"
SPACED = re.compile(r"[^\w&%.+<>≤≥-]+|_+|\.(?!\d)")


def plain_words(text: str) -> str:
    """Lower case, one space between words, no punctuation but what changes a finding.

    Points within numbers, &, %, comparisons and signs stay: 1.5 is not 15, and ER- is not ER+.
    """
    plain = text.casefold().replace("\N{MINUS SIGN}", "-")
    return " ".join(SPACED.sub(" ", HYPHEN.sub(" ", plain)).split())


def exact_match(said: str, truth: str) -> float:
    """1.0 if both texts are the same after `plain_words`, else 0.0."""
    return float(plain_words(said) == plain_words(truth))


def token_f1(said: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it occurs; in [0, 1].

    Two empty texts agree (1.0); one empty text shares nothing (0.0).
    """
    ours, theirs = plain_words(said).split(), plain_words(truth).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def named_level(caption: str) -> str:
    """The level that a caption names, such as "the thalamus", or ""."""
    found = re.search(r"at the level of (the [\w -]+)", caption)
    return found[1].strip() if found else ""


def named_kind(caption: str) -> tuple[str, str]:
    """(contrast, plane) that a caption names, "" for what it does not."""
    text = f" {plain_words(caption)} "
    plane = next((plane for plane in PLANES if f" {plane} " in text), "")
    return next((name for name in CONTRASTS if f" {plain_words(name)} " in text), ""), plane
