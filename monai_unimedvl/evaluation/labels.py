# SPDX-License-Identifier: Apache-2.0
"""Findings in reports: label F1 by any labeller, and clinical measures through RadEval if it is installed.

    label_f1(Keywords(CHEST)(said), Keywords(CHEST)(true)).micro
    radeval(said, true, ["radgraph", "f1chexbert", "green"])

A labeller is a function from texts to {label: True, False, or None if uncertain}. `Keywords` is a plain one
that runs anywhere; it is not CheXbert, and a table must say which was used.
  N texts   L labels
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai.utils import optional_import

Labels = Mapping[str, bool | None]
Labeller = Callable[[Sequence[str]], Sequence[Labels]]

CHEST: Mapping[str, tuple[str, ...]] = {
    "atelectasis": ("atelecta",),
    "cardiomegaly": ("cardiomegaly", "enlarged heart", "enlarged cardiac", "heart is enlarged"),
    "consolidation": ("consolidat",),
    "edema": ("edema", "oedema", "vascular congestion"),
    "effusion": ("effusion",),
    "emphysema": ("emphysema", "hyperinflat"),
    "fracture": ("fracture",),
    "nodule or mass": ("nodul", "mass_", "masses_"),
    "opacity": ("opacit", "infiltrat"),
    "pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothora",),
    "device": ("catheter", "tube_", "tubes_", "pacemaker", "picc", "sternotomy wire", "port-a-cath"),
}
NEGATION = re.compile(
    r"\b(?:no|not|without|free of|negative for|resolved|absence of|absent|denies|rule out)\b"
)
DOUBT = re.compile(
    r"\b(?:may|might|possibl[ey]|probabl[ey]|suspect\w*|cannot be excluded|questionable|likely|versus)\b"
)
SENTENCE = re.compile(r"(?<=[.;!?])\s+|\n+|\bbut\b|\bhowever\b", re.IGNORECASE)


@dataclass(frozen=True)
class Keywords:
    """A labeller that looks for stems of words in each sentence, negation before them, and doubt.

    Args:
        terms: label -> stems, each looked for at the beginning of a word; with _ at its end it is the word.
    """

    terms: Mapping[str, tuple[str, ...]]

    def __call__(self, texts: Sequence[str]) -> list[dict[str, bool | None]]:
        """For each text each label: True if said, None if doubted, else False."""
        return [self._of(text) for text in texts]

    def _of(self, text: str) -> dict[str, bool | None]:
        found: dict[str, set[str]] = {label: set() for label in self.terms}
        for sentence in SENTENCE.split(text.casefold()):
            for label, stems in self.terms.items():
                for stem in stems:
                    for hit in re.finditer(_pattern(stem), sentence):
                        before = sentence[: hit.start()]
                        doubted = DOUBT.search(sentence) is not None
                        negated = NEGATION.search(before) is not None
                        found[label].add("no" if negated else "doubt" if doubted else "yes")
        return {
            label: True if "yes" in said else None if "doubt" in said else False
            for label, said in found.items()
        }


@dataclass(frozen=True)
class LabelScores:
    """Agreement of two sets of labels.

    Args:
        f1: label -> F1; None where neither side ever has it, so that it is in no mean.
        micro: F1 of all decisions together. macro: mean of `f1`. each: F1 of the labels of each text.
        n: label -> times that it is true.
    """

    f1: dict[str, float | None]
    micro: float
    macro: float
    each: list[float]
    n: dict[str, int]


def label_f1(said: Sequence[Labels], true: Sequence[Labels], *, uncertain: bool = True) -> LabelScores:
    """F1 of labels, of each label, of all, and of each text.

    Args:
        said, true: N mappings with the same L labels.
        uncertain: what an uncertain label counts as.

    Raises:
        ValueError: not as many texts, or other labels.
    """
    if len(said) != len(true) or not true:
        raise ValueError(
            f"label_f1 got labels of {len(said)} and {len(true)} texts, expected as many, and some."
        )
    names = list(true[0])
    for number, (one, other) in enumerate(zip(said, true, strict=True)):
        if set(one) != set(names) or set(other) != set(names):
            lost = sorted(set(one) ^ set(names) or set(other) ^ set(names))
            raise ValueError(f"Text {number} differs in label {lost[0]!r}: give every text the same labels.")
    ours = [{k: uncertain if v is None else v for k, v in one.items()} for one in said]
    theirs = [{k: uncertain if v is None else v for k, v in one.items()} for one in true]
    counts = {name: [0, 0, 0] for name in names}  # both, only said, only true
    each = []
    for one, other in zip(ours, theirs, strict=True):
        row = [0, 0, 0]
        for name in names:
            places = (one[name] and other[name], one[name] and not other[name], other[name] and not one[name])
            for place, hit in enumerate(places):
                row[place] += bool(hit)
                counts[name][place] += bool(hit)
        each.append(1.0 if not any(row) else _f1(*row) or 0.0)  # nothing to say and nothing said
    f1 = {name: _f1(*counts[name]) for name in names}
    known = [value for value in f1.values() if value is not None]
    micro = _f1(*(sum(count[place] for count in counts.values()) for place in range(3)))
    macro = math.fsum(known) / len(known) if known else math.nan
    return LabelScores(
        f1, math.nan if micro is None else micro, macro, each,
        {name: counts[name][0] + counts[name][2] for name in names},
    )  # fmt: skip


def radeval(
    said: Sequence[str], true: Sequence[str], metrics: Sequence[str], *, download: bool = False
) -> dict[str, list[float]]:
    """Clinical measures of RadEval, one number a text: "radgraph", "f1chexbert", "green", "ratescore" ...

    Args:
        download: let RadEval fetch models from the network; otherwise only those on this machine are used.

    Raises:
        ValueError: RadEval is not installed, or a model is not on this machine.
    """
    module, found = optional_import("radeval")
    if not found:
        raise ValueError(
            "RadGraph, CheXbert and GREEN need RadEval, which is not installed: `pip install radeval` into "
            "an environment of its own, for it brings another torch."
        )
    with _offline(not download):
        try:
            given = module.RadEval(metrics=list(metrics), per_sample=True)(refs=list(true), hyps=list(said))
        except OSError as error:
            raise ValueError(
                f"RadEval lacks a model of {', '.join(metrics)} here ({' '.join(str(error).split())[:120]}): "
                "run once with download=True where the network may be used."
            ) from error
    return {
        str(name): [float(value) for value in values]
        for name, values in given.items()
        if isinstance(values, Sequence) and len(values) == len(said)
    }


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """The Hugging Face libraries without network, or with it, and back."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before: dict[str, Any] = {name: os.environ.get(name) for name in names}
    hub, found = optional_import("huggingface_hub.constants")
    was = getattr(hub, names[0], None) if found else None
    for name in names:
        os.environ[name] = "1" if on else "0"
    if was is not None:
        setattr(hub, names[0], on)
    try:
        yield
    finally:
        if was is not None:
            setattr(hub, names[0], was)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _pattern(stem: str) -> str:
    whole = stem.endswith("_")
    return rf"\b{re.escape(stem.rstrip('_'))}" + (r"\b" if whole else "")


def _f1(both: int, only_said: int, only_true: int) -> float | None:
    """F1 of counts, None where there is nothing to find and nothing found."""
    total = 2 * both + only_said + only_true
    return 2 * both / total if total else None
