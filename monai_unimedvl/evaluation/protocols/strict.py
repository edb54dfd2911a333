# SPDX-License-Identifier: Apache-2.0
"""`strict-v1`, ours: whole words, one normalisation for both sides, every item in the denominator.

  closed   yes or no as a word, the leading one if both are there; other closed truths by exact match
  open     exact match after normalisation; lists in any order; token F1 beside it
  choice   the letter that stands alone or is pointed at, else the one option that is named in whole words

Both texts go through the same functions, so that answer and truth can change places. English and Chinese are
never averaged together. Empty answers and refusals are counted, and count as wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols.base import Protocol
from monai_unimedvl.evaluation.text import plain_words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HAN = re.compile(r"[\u3400-\u9fff]")
TOKEN = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")
LISTED = re.compile(r"(?<!\d),|,(?!\d)|[;，、；]|\band\b|和")
ARTICLE = re.compile(r"^(?:an?|the) (?=\S)")
YES, NO = frozenset({"yes"}), frozenset({"no"})
HAN_NO = ("否", "不", "没", "无", "错", "未见")
BARE_HAN = frozenset(
    "是 是的 有 对 对的 存在 可以 能 正确".split()
    + "否 不 不是 没 没有 无 不对 不存在 不可以 不能 不正确 错 错误".split()
)
HAN_YES = ("是", "有", "存在", "可以", "正确", "能", "对")
POINTED = re.compile(
    r"(?:(?i:answer|option|choice)(?:\s+is)?|答案是?|选项?)\s*[:：]?\s*[\(\[*\"']*([A-Z])(?![A-Za-z])"
)
ALONE = re.compile(r"^[\(\[*\"']*([A-Za-z])[\)\]*\"']*(?:$|[.:：)\]]|\s+[-–—])")
REFUSALS = (
    "i cannot", "i can't", "i can not", "i am unable", "i'm unable", "unable to answer", "as an ai",
    "i'm sorry", "i am sorry", "i am not able", "i'm not able", "cannot provide", "无法回答", "无法判断",
    "无法确定", "抱歉", "不能回答",
)  # fmt: skip


@lru_cache(200_000)
def strict_spelling(text: str) -> str:
    """One spelling: NFKC, no leading article, and `plain_words`, which keep what changes a finding."""
    return ARTICLE.sub("", plain_words(unicodedata.normalize("NFKC", text)))


@lru_cache(200_000)
def as_list(text: str) -> str:
    """The parts of a list in the order of the alphabet, each normalised: "Lung, heart" -> "heart, lung" """
    plain = unicodedata.normalize("NFKC", text).casefold()
    parts = [strict_spelling(part) for part in LISTED.split(plain)]
    return ", ".join(sorted(part for part in parts if part))


def tokens(text: str) -> list[str]:
    """Words of a text, and of Chinese its characters."""
    return TOKEN.findall(strict_spelling(text))


def strict_token_f1(one: str, other: str) -> float:
    """Harmonic mean of precision and recall over tokens, counted as they occur; two empty texts agree."""
    ours, theirs = tokens(one), tokens(other)
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


@lru_cache(200_000)
def polarity(text: str) -> str:
    """ "yes", "no", or "" where a text says neither, or both and leads with neither.

    English by whole words, so that "normal" and "abnormal" say nothing; Chinese by how the text begins.
    """
    words = strict_spelling(text).split()
    if not words:
        return ""
    if HAN.match(words[0]):
        if words[0].startswith("是否"):
            return ""
        if words[0].startswith(HAN_NO):
            return "no"
        return "yes" if words[0].startswith(HAN_YES) else ""
    said = [word for word in words if word in YES or word in NO]
    if not said:
        return ""
    if words[0] in said or len(set(said)) == 1:
        return "yes" if said[0] in YES else "no"
    return ""


def is_bare(truth: str) -> bool:
    """Whether a truth is yes or no and nothing else."""
    word = strict_spelling(truth)
    return word in YES or word in NO or word in BARE_HAN


@lru_cache(200_000)
def chosen(text: str, options: tuple[str, ...]) -> int | None:
    """Place of the option that a text chooses, None where it is not one."""
    plain = unicodedata.normalize("NFKC", text).strip()
    normal = strict_spelling(plain)
    texts = [strict_spelling(option) for option in options]
    if not normal:
        return None
    if texts.count(normal) == 1:
        return texts.index(normal)
    valid = LETTERS[: len(options)]
    if (alone := ALONE.match(plain)) and alone[1].upper() in valid:
        return valid.index(alone[1].upper())
    if pointed := {letter for letter in POINTED.findall(plain) if letter in valid}:
        return valid.index(min(pointed)) if len(pointed) == 1 else None
    left, found = f" {normal} ", []
    for place in sorted(range(len(texts)), key=lambda place: -len(texts[place])):
        if texts[place] and f" {texts[place]} " in left:
            found.append(place)
            left = left.replace(f" {texts[place]} ", " | ")  # "no mass" is not "mass" too
    return found[0] if len(found) == 1 else None


def refuses(text: str) -> bool:
    """Whether a text declines to answer; it is counted, and scored like any other."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return any(words in plain for words in REFUSALS)


def kind_of(row: Prediction) -> str:
    """The kind of an item: what the benchmark says, else by its options and truth."""
    if row.answer_type in ("closed", "open"):
        return row.answer_type
    if row.options or row.answer_type == "choice":
        return "choice"
    return "closed" if not row.answer_type and is_bare(row.truth) else "open"


def closed_or_open(row: Prediction) -> str:
    """The kind of an item for protocols without choices: what the benchmark says, else by its truth."""
    if row.answer_type in ("closed", "open"):
        return row.answer_type
    return "closed" if is_bare(row.truth) else "open"


def is_scored(row: Prediction) -> str:
    """Questions count; images and reports have measures of their own."""
    if row.answer_type == "report":
        return "a report, which the text measures score"
    return "" if row.truth.strip() else "its truth is an image"


def closed(said: str, truth: str, row: Prediction) -> float:
    """Yes against yes and no against no; else whether the texts are the same."""
    if is_bare(truth) or is_bare(said):
        return float(polarity(said) == polarity(truth) != "")
    return float(strict_spelling(said) == strict_spelling(truth) != "")


def same(said: str, truth: str, row: Prediction) -> float:
    """Whether two texts are the same after normalisation, lists in any order; empty ones never."""
    found = as_list(said)
    return float(found != "" and (found == as_list(truth) or found in map(as_list, row.references)))


def choice(said: str, truth: str, row: Prediction) -> float:
    """Whether both texts choose one option, and the same."""
    options = tuple(row.options)
    picked = chosen(said, options)
    return float(picked is not None and picked == chosen(truth, options))


def f1_of(said: str, truth: str, row: Prediction) -> Mapping[str, float]:
    """Token F1 against the truth, or the best of several."""
    return {"token F1": max(strict_token_f1(said, one) for one in (truth, *row.references))}


def read(text: str, row: Prediction, kind: str) -> str:
    """One spelling; of open answers also one order of a list; of choices the marks around a letter stay."""
    if kind == "choice":
        return unicodedata.normalize("NFKC", text).strip()
    return strict_spelling(text) if kind == "closed" else as_list(text)


def untouched(text: str, row: Prediction, kind: str) -> str:
    """The text as it is."""
    return text


SUFFIXES: Mapping[str, Mapping[str, str]] = {
    "closed": {
        "en": "\nAnswer yes or no, or with one of the words asked about.",
        "zh": "\n只用“是”或“否”或所问的词回答。",
    },
    "open": {"en": "\nAnswer with a word or a short phrase.", "zh": "\n用一个词或短语回答。"},
    "choice": {"en": "\nAnswer with the letter of one option only.", "zh": "\n只回答一个选项的字母。"},
}  # fmt: skip


SAYS = {
    "select": "every question counts, empty answers and refusals as wrong",
    "split": "by the benchmark's word, else by options, else yes or no is closed",
    "read": "one spelling for both sides, lists in the order of the alphabet",
    "closed": "yes and no as whole words, the leading one if both are said; other truths by exact match",
    "open": "1 if the texts are the same and not empty, else 0",
    "choice": "the letter that stands alone or is pointed at, else the one option named in whole words",
}


def strict(faithful: Collection[str] = ()) -> Protocol:
    """The protocol `strict-v1`; it has no faults to be faithful to."""
    return Protocol(
        "strict-v1", "1", "Whole words, one normalisation, every question counts, languages apart.",
        "this package",
        select=is_scored, split=kind_of, read=read, read_truth=read,
        says=SAYS, closed=closed, open=same, choice=choice, apart=("language",), suffixes=SUFFIXES,
        measures={"closed": "accuracy", "open": "exact match", "choice": "accuracy"}, details={"open": f1_of},
    )  # fmt: skip
