# SPDX-License-Identifier: Apache-2.0
"""`medevalkit-rule`: micro accuracy over all items, after MedEvalKit (Lingshu), without and with a judge.

The answer is cut out of a box, <answer> tags or the words "answer is", put into lower case and, if closed,
freed of full stops and line ends. Of options the most similar string is taken if no letter can be read.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Mapping
from functools import lru_cache

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols.base import Fault, Protocol, PublicCodeStops
from monai_unimedvl.packages import needed

SOURCE = "alibaba-damo-academy/MedEvalKit 9b12e3b utils/utils.py, utils/{VQA_RAD,SLAKE,PATH_VQA,OmniMedVQA}"
FAULTS = (
    Fault(
        "substring",
        "yes and no are looked for anywhere in the answer, and one of them alone must be there: 'normal' "
        "is a no, 'yes, abnormal' holds both and is wrong.",
        "utils.py, `judge_judgement`: `('yes' in response) ^ ('no' in response)`",
    ),
    Fault(
        "capitals",
        "in SLAKE the truths are Yes and No with a capital, which are not among ['yes', 'no']: yes/no "
        "items are scored by exact match; and no answer of SLAKE is freed of spaces around it, so ' lung' "
        "is not 'lung'.",
        "SLAKE.py, `if answer in ['yes', 'no']` before the answer is put into lower case",
    ),
    Fault(
        "empty",
        "an empty answer to an open question ends the run with an error, so a model that once says nothing "
        "has no score.",
        "utils.py, ROUGE of an empty text raises ValueError; behind it `calculate_f1` returns 0 where three "
        "numbers are unpacked",
    ),
    Fault(
        "swapped",
        "what is printed as precision is F1, as recall precision, as F1 recall.",
        "utils.py, `precision, recall, f1 = calculate_f1(...)` of a function that returns f1, precision, "
        "recall",
    ),
    Fault(
        "first-option",
        "an empty answer to a multiple choice is as similar to all options, and the first is taken.",
        "utils.py, `find_most_similar_index` starts at index 0",
    ),
    Fault(
        "box-of-none",
        "an answer with the word boxed but without \\boxed{...} is read as the text None.",
        "utils.py, `parse_response` with mathruler's `extract_boxed_content`",
    ),
    Fault(
        "judged-twice",
        "with a judge, closed items of SLAKE are added by the rule and again by the judge, so accuracy can "
        "pass 1; those of PathVQA are set to zero and stay in the denominator.",
        "SLAKE.py and PATH_VQA.py, the lines after `use_llm_judge`",
    ),
)  # fmt: skip
MARKS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer",
    "final answer is",
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SUFFIXES: Mapping[str, Mapping[str, str]] = {  # without reasoning; closed is for yes or no
    "closed": {
        "en": "\nPlease output 'yes' or 'no'(no extra output).",
        "zh": "\n请输出'是'或'否'(不要有任何其它输出)。",
    },
    "open": {"en": "\nPlease answer the question concisely.", "zh": "\n请简要回答该问题。"},
    "choice": {
        "en": "\nAnswer with the option's letter from the given choices directly.",
        "zh": "\n请直接使用给定选项中的选项字母来回答该问题。",
    },
}  # fmt: skip


SAYS = {
    "select": "every question counts, of SLAKE both languages together",
    "split": "truths yes and no are closed, the others open; of SLAKE by answer_type",
    "read": "in lower case, cut to what follows 'answer is' or stands in a box",
    "closed": "yes or no is said and not the other, and is the truth; other truths by exact match",
    "open": "1 if the texts are the same, else 0",
    "choice": "the letter at the start, else the option most like the answer by difflib",
}


def boxed(text: str) -> str | None:
    """What is in the last \\boxed{...} of a text, None if there is none that closes."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth = 1
    inside = text[start + len(r"\boxed{") :]
    for place, letter in enumerate(inside):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return inside[:place].strip()
    return None


def tagged(text: str) -> str:
    """What is between <answer> and </answer>, joined by spaces; the text itself if nothing is."""
    return " ".join(TAGGED.findall(text)).strip() or text


def parsed(text: str, *, none: bool) -> str:
    """A text in lower case, cut to its answer.

    Args:
        none: a text that speaks of a box without having one becomes "None".
    """
    plain = text.lower()
    if "boxed" in plain:
        found = boxed(plain)
        plain = found if found is not None else "None" if none else plain
    elif "<answer>" in plain:
        plain = tagged(plain)
    for mark in MARKS:
        if mark in plain:
            plain = plain.split(mark)[-1]
    return plain


def overlap(said: str, truth: str) -> tuple[float, float, float]:
    """F1, precision and recall over different words."""
    ours, theirs = set(said.lower().split()), set(truth.lower().split())
    shared = len(ours & theirs)
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall), precision, recall


def medevalkit(faithful: Collection[str] = ()) -> Protocol:
    """The protocol `medevalkit-rule`.

    Args:
        faithful: names of `FAULTS` to have.
    """
    having = frozenset(faithful)
    none, twice = "box-of-none" in having, "judged-twice" in having

    def read(text: str, row: Prediction, kind: str) -> str:
        if kind == "choice":
            return tagged(text) if "<answer>" in text else text
        slake = row.benchmark == "slake"
        found = boxed(text)
        # its sentinel of "no box" is the text None, so a box that holds None counts as no box
        cut = found if found not in (None, "None") else tagged(text) if "<answer>" in text else text
        plain = parsed(cut if slake and "capitals" in having else cut.lower().strip(), none=none)
        if kind == "closed":
            plain = plain.replace("\n", "").replace(".", "")
        return plain if slake and "capitals" in having else plain.strip() if slake else plain

    def read_truth(text: str, row: Prediction, kind: str) -> str:
        if kind == "choice" or row.benchmark == "slake":
            return text.lower() if kind != "choice" else text
        return text.lower().strip()

    def closed(said: str, truth: str, row: Prediction) -> float:
        bare = row.truth in ("yes", "no") if row.benchmark == "slake" and "capitals" in having else True
        if not bare or truth.strip() not in ("yes", "no"):
            return float(said == truth)
        where: Collection[str] = said if "substring" in having else re.findall(r"[a-z]+", said)
        return float(("yes" in where) != ("no" in where) and truth.strip() in where)

    def opened(said: str, truth: str, row: Prediction) -> float:
        if "empty" in having and not any(said.split(".")):
            raise PublicCodeStops("ValueError: Hypothesis is empty.")
        if "empty" in having and not said.split():
            raise PublicCodeStops("TypeError: cannot unpack non-iterable int object")
        return float(said == truth)

    def details(said: str, truth: str, row: Prediction) -> Mapping[str, float]:
        f1, precision, recall = overlap(said, truth)
        if "swapped" in having:
            f1, precision, recall = recall, f1, precision
        more = {f"BLEU-{n}": bleu(said, truth, n) for n in range(1, 5)}
        return more | {"token precision": precision, "token recall": recall, "token F1": f1}

    def choice(said: str, truth: str, row: Prediction) -> float:
        options = tuple(row.options)
        letters = [LETTERS[place] for place, option in enumerate(options) if option == truth]
        if "first-option" not in having and not said.strip():
            return 0.0
        return float(picks(options, letters[-1] if letters else truth, said, none))

    def judged(row: Prediction, kind: str) -> bool:
        return kind == "open" or (twice and kind == "closed" and row.benchmark == "slake")

    def combine(rule: float, right: bool | None, row: Prediction, kind: str) -> float:
        if twice and kind == "closed" and row.benchmark in ("slake", "pathvqa"):
            return rule + bool(right) if row.benchmark == "slake" else 0.0
        return rule if right is None else float(right)

    return Protocol(
        "medevalkit-rule", "1",
        "One accuracy over closed (yes xor no) and open (exact match) items and choices.",
        SOURCE, select=_select, split=_kind, read=read, read_truth=read_truth,
        says=SAYS, closed=closed, open=opened, choice=choice,
        measures={"closed": "accuracy", "open": "exact match", "choice": "accuracy"},
        suffixes=SUFFIXES, details={"open": details}, faults=FAULTS, faithful=having, judged=judged,
        combine=combine,
    )  # fmt: skip


@lru_cache(200_000)
def picks(options: tuple[str, ...], letter: str, said: str, none: bool = True) -> bool:
    """Whether an answer to a multiple choice picks the option of a letter, as `judge_multi_choice` does."""
    alphas = [chr(ord("a") + place) for place in range(len(options))]
    texts = [f"{alpha}. {option}".lower() for alpha, option in zip(alphas, options, strict=True)]
    text, answer = said.lower(), letter.strip().lower()
    blocks = text.split("\n\n")
    if blocks[0] in alphas:
        text = blocks[0]
    elif blocks[-1].split(".")[0] in alphas:
        text = blocks[-1].split(".")[0]
    text = parsed(text, none=none).strip().lower().replace("\n", "")
    short = text.split(".")[0].split(":")[-1]
    if short == answer:
        return True
    if short in alphas:
        return texts[alphas.index(short)] == answer
    if short in texts:
        return answer in alphas and short == texts[alphas.index(answer)]
    place = most_similar(texts, text)
    return bool(texts) and answer in (alphas[place], texts[place])


def most_similar(texts: list[str], said: str) -> int:
    """Place of the text most like what was said by difflib, the first of equals; 0 if none is like it."""
    best, place = 0.0, 0
    for number, text in enumerate(texts):
        if (found := difflib.SequenceMatcher(None, text, said).ratio()) > best:
            best, place = found, number
    return place


def bleu(said: str, truth: str, n: int) -> float:
    """NLTK's BLEU of one sentence without smoothing, orders up to n, full stops as words of their own."""
    module = needed("nltk.translate.bleu_score", "BLEU", "eval")
    ours, theirs = (text.lower().replace(".", " .").split(" ") for text in (said, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an order without a match, which every short answer has
        return float(module.sentence_bleu([theirs], ours, weights=[1 / n] * n))


def _select(row: Prediction) -> str:
    if row.answer_type == "report":
        return "a report, which it scores elsewhere"
    return "" if row.truth.strip() else "its truth is an image"


def _kind(row: Prediction) -> str:
    if row.options or row.answer_type == "choice":
        return "choice"
    if row.benchmark == "slake":
        return "open" if row.answer_type == "open" else "closed"
    return "closed" if row.truth.lower().strip() in ("yes", "no") else "open"
