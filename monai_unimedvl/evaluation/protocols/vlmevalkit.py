# SPDX-License-Identifier: Apache-2.0
"""`vlmevalkit-mcq`: multiple choice as VLMEvalKit infers the option from an answer, without a judge.

Short answers (PathVQA) have a judge there and nothing else: they count here only with one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols.base import Fault, Protocol, PublicCodeStops
from monai_unimedvl.evaluation.protocols.strict import kind_of, untouched

SOURCE = (
    "open-compass/VLMEvalKit e8e78f0 vlmeval/utils/matching_util.py, "
    "vlmeval/dataset/{image_mcq,image_shortqa}.py"
)
FAULTS = (
    Fault(
        "parts",
        "of the 30 part files of OmniMedVQA that are listed, 14 are loaded.",
        "image_mcq.py, class OmniMedVQA, `range(1, 15)`",
    ),
    Fault(
        "article",
        "a capital A that stands alone is option A, also where it is the article of a short sentence: 'A "
        "large mass' is option A.",
        "matching_util.py, `can_infer_option`",
    ),
    Fault(
        "substring",
        "the text of an option is looked for anywhere in the answer: 'abnormal' names the option 'normal'.",
        "matching_util.py, `can_infer_text`",
    ),
    Fault(
        "judgeless",
        "short answers scored with exact_matching, and without a judge that works, end the run with "
        "KeyError.",
        "image_shortqa.py, `ans_map[x]` of an empty map",
    ),
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOADED = 14  # part files of OmniMedVQA
CUT = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
REFUSED = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer",
)  # fmt: skip
STATED = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
SUFFIXES: Mapping[str, Mapping[str, str]] = {
    "choice": {"en": "\nPlease select the correct answer from the options above. \n"},
    "open": {"en": "\nPlease directly provide a short answer to the question. "},
    "closed": {"en": "\nPlease directly provide a short answer to the question. "},
}


SAYS = {
    "select": "every question counts, short answers only with a judge",
    "split": "whatever has options is a choice",
    "read": "not at all",
    "closed": "by a judge only",
    "open": "by a judge only",
    "choice": "a letter that stands alone near the end, else the one option whose text is in the answer",
}


def inferred(said: str, options: tuple[str, ...], *, article: bool = True, substring: bool = True) -> str:
    """The letter that an answer names, "Z" for a refusal, "" where none can be inferred."""
    if letter := _letter(said, LETTERS[: len(options)], article):
        return letter
    return _named(said, options, substring)


def vlmevalkit(faithful: Collection[str] = ()) -> Protocol:
    """The protocol `vlmevalkit-mcq`.

    Args:
        faithful: names of `FAULTS` to have.
    """
    having = frozenset(faithful)

    def select(row: Prediction) -> str:
        if row.answer_type == "report":
            return "a report, which it does not know"
        part = row.groups.get("part", "")
        if "parts" in having and row.benchmark == "omnimedvqa" and part.isdigit() and int(part) > LOADED:
            return f"in part {part}, and only {LOADED} parts are loaded"
        return "" if row.truth.strip() else "its truth is an image"

    def choice(said: str, truth: str, row: Prediction) -> float:
        options = tuple(row.options)
        letter = inferred(said, options, article="article" in having, substring="substring" in having)
        right = LETTERS[options.index(truth)] if truth in options else truth.strip().upper()
        return float(letter == right)

    def short(said: str, truth: str, row: Prediction) -> float | None:
        if "judgeless" in having:
            raise PublicCodeStops("KeyError: no judge has seen this item")
        return None  # `unscored` says why

    return Protocol(
        "vlmevalkit-mcq", "1",
        "The option whose letter or text stands alone in the answer; short answers by a judge.",
        SOURCE, select=select, split=kind_of, read=untouched, read_truth=untouched,
        says=SAYS, closed=short, open=short, choice=choice,
        measures={"closed": "judged right", "open": "judged right", "choice": "accuracy"},
        suffixes=SUFFIXES, faults=FAULTS, faithful=having, judged=lambda row, kind: kind != "choice",
        unscored="a short answer, which a judge scores and nothing else",
    )  # fmt: skip


def _letter(said: str, letters: str, article: bool) -> str:
    if "Failed to obtain answer via API" in said:
        return ""
    if any(words in said for words in REFUSED):
        return "Z"
    words = said.translate(CUT).split()
    found = [letter for letter in letters if letter in words]
    if len(found) == 1 and (article or not _is_article(found[0], said)):
        if words.index(found[0]) > len(words) - 5:
            return found[0]
    elif not found and "Z" in words:
        return "Z"
    stated = STATED.search(said)
    return stated[1].upper() if stated and stated[1].upper() in letters else ""


def _is_article(letter: str, said: str) -> bool:
    """Whether a letter A begins a phrase, and is no letter of an option."""
    return letter == "A" and re.search(r"\bA\s+[a-z]", said) is not None


def _named(said: str, options: tuple[str, ...], substring: bool) -> str:
    plain, texts = said.lower(), [option.lower() for option in options]
    if len(plain) > 2 * sum(map(len, options)):
        return ""
    if substring:
        named = [letter for letter, text in zip(LETTERS, texts, strict=False) if text in plain]
    else:
        named = [letter for letter, text in zip(LETTERS, texts, strict=False) if _stands_in(text, plain)]
    return named[0] if len(named) == 1 else ""


def _stands_in(text: str, plain: str) -> bool:
    """Whether a text is in another one with no letter or digit right before or behind it."""
    start = plain.find(text)
    while text and start >= 0:
        end = start + len(text)
        if not plain[start - 1 : start].isalnum() and not plain[end : end + 1].isalnum():
            return True
        start = plain.find(text, start + 1)
    return False
