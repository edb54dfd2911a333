# SPDX-License-Identifier: Apache-2.0
"""`llavamed-v1`: closed accuracy and open token recall, after LLaVA-Med v1.0's `run_eval.py`.

The copy in MedTrinity-25M is the same but for the fault "dropped", which it mends. Both texts are read by the
VQA-v2 normalisation: digits for number words ("none" becomes 0), no articles, apostrophes put back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols.base import Fault, Protocol
from monai_unimedvl.evaluation.protocols.strict import closed_or_open

SOURCE = (
    "microsoft/LLaVA-Med v1.0 llava/eval/run_eval.py; UCSC-VLAA/MedTrinity-25M 79b1b03 llava/eval/run_eval.py"
)
FAULTS = (
    Fault(
        "untyped",
        "an item whose answer_type is neither OPEN nor CLOSED is left out without a word.",
        "run_eval.py, `if ... elif` without `else`",
    ),
    Fault(
        "substring",
        "yes, no and the truth are looked for anywhere in the answer: 'normal' and 'abnormal' hold 'no', "
        "so an answer 'normal' to a question whose truth is 'no' is right.",
        "run_eval.py, `'no' in pred_value` and `gt_value in pred_value`",
    ),
    Fault(
        "dropped",
        "a closed answer that holds yes or no but not the truth is neither right nor wrong: it leaves the "
        "denominator, and only answers with neither count against the model.",
        "run_eval.py of v1.0, the inner `if` has no `else`; MedTrinity's copy has one",
    ),
    Fault(
        "unclipped",
        "a word that the answer repeats is found each time it is repeated, though the truth has it once: "
        "recall and precision rise.",
        "evaluate_metrics.py, `tp += candidate_words[word]`",
    ),
    Fault(
        "periods",
        "only the first 32 full stops of a text are removed.",
        "glossary.py, `sub('', token, re.UNICODE)`: the flag stands where the count belongs",
    ),
    Fault(
        "precision",
        "what is called exact match is the share of the answer's words that the truth has.",
        "evaluate_metrics.py, `calculate_exactmatch`",
    ),
)  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COUNTED = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(COUNTED)}
ARTICLES = {"a", "an", "the"}
STOP = re.compile(r"\.(?!\d)")
THOUSANDS = re.compile(r"\d,\d")
# The VQA-v2 list of words that lost an apostrophe; what it leaves as it is, is left out.
SHORT = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd "
    "how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't "
    "shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's something'd "
    "something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've "
    "why'll why're why's won't would've wouldn't y'all y'all'll you'd you'll you're you've"
).split()  # fmt: skip
CONTRACTIONS = {word.replace("'", ""): word for word in SHORT if word not in ("y'all'll",)} | {
    "somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll", "y'allll": "y'all'll", "y'all'dve": "y'all'd've", "y'alld've": "y'all'd've",
    "yall'd've": "y'all'd've",
} | {
    wrong: right
    for stem, right in (
        ("couldnt", "couldn't've"), ("hadnt", "hadn't've"), ("hed", "he'd've"), ("itd", "it'd've"),
        ("mightnt", "mightn't've"), ("shed", "she'd've"), ("shouldnt", "shouldn't've"),
        ("somebodyd", "somebody'd've"), ("someoned", "someone'd've"), ("somethingd", "something'd've"),
        ("thered", "there'd've"), ("theyd", "they'd've"), ("wed", "we'd've"), ("whod", "who'd've"),
        ("wouldnt", "wouldn't've"), ("youd", "you'd've"),
    )
    for wrong in (f"{stem}'ve", f"{right[:-3]}ve")
}  # fmt: skip


SAYS = {
    "select": "no multiple choice",
    "split": "by the benchmark's answer_type",
    "read": "by the VQA-v2 normalisation, none is 0",
    "closed": "right if the truth and either yes or no is said",
    "open": "the share of the truth's words that is said",
    "choice": "multiple choice has no rule",
}


@lru_cache(200_000)
def vqa_spelling(text: str, stops: int = 0) -> str:
    """As VQA-v2 reads a text.

    A punctuation mark with a space on either side is removed everywhere, any other becomes a space; a number
    such as 1,000 turns this off for all marks.

    Args:
        stops: at most so many full stops are removed; 0 for all.
    """
    joined = THOUSANDS.search(text) is not None
    plain = text
    for mark in PUNCTUATION:
        if mark in plain:
            gone = joined or f"{mark} " in text or f" {mark}" in text
            plain = plain.replace(mark, "" if gone else " ")
    words = STOP.sub("", plain, count=stops).lower().split()
    kept = [word for word in (NUMBERS.get(word, word) for word in words) if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept).replace(",", "")


def overlap(said: str, truth: str, *, clipped: bool) -> tuple[float, float, float]:
    """F1, precision and recall over words."""
    ours, theirs = Counter(said.split()), Counter(truth.split())
    if not ours or not theirs:
        return 0.0, 0.0, 0.0
    if clipped:
        found = (ours & theirs).total()
        precision, recall = found / ours.total(), found / theirs.total()
    else:
        found = sum(count for word, count in ours.items() if word in theirs)
        missed = sum(count for word, count in theirs.items() if word not in ours)
        precision, recall = found / ours.total(), found / (found + missed) if found else 0.0
    return (2 * precision * recall / (precision + recall) if found else 0.0), precision, recall


def llavamed(faithful: Collection[str] = (), candidates: Sequence[str] = ()) -> Protocol:
    """The protocol `llavamed-v1`.

    Args:
        faithful: names of `FAULTS` to have.
        candidates: answers to choose from; given, the nearest one is a further measure of open items.
    """
    having = frozenset(faithful)
    stops = 32 if "periods" in having else 0
    known = tuple(dict.fromkeys(vqa_spelling(vqa_spelling(one.lower(), stops), stops) for one in candidates))

    def read(text: str, row: Prediction, kind: str) -> str:
        once = vqa_spelling(text.lower(), stops)
        return once if kind == "closed" else vqa_spelling(once, stops)  # its open measures vqa_spelling again

    def closed(said: str, truth: str, row: Prediction) -> float | None:
        if "substring" in having:
            polar, found = "yes" in said or "no" in said, truth in said
        else:
            words = said.split()
            polar, found = "yes" in words or "no" in words, f" {truth} " in f" {said} "
        if not polar:
            return 0.0
        return 1.0 if found else None if "dropped" in having else 0.0

    def opened(said: str, truth: str, row: Prediction) -> float:
        return overlap(said, truth, clipped="unclipped" not in having)[2]

    def details(said: str, truth: str, row: Prediction) -> Mapping[str, float]:
        f1, precision, _ = overlap(said, truth, clipped="unclipped" not in having)
        match = _shared(said, truth) if "precision" in having else float(said == truth)
        more = {"exact match": match, "token F1": f1, "token precision": precision}
        return more | ({"nearest candidate": float(nearest(said, known) == truth)} if known else {})

    return Protocol(
        "llavamed-v1", "1",
        "Closed: the truth is said, if yes or no is. Open: share of the truth's words that are said.",
        SOURCE, select=partial(_select, untyped="untyped" in having), split=closed_or_open,
        read=read, read_truth=read, says=SAYS, closed=closed, open=opened,
        measures={"closed": "accuracy", "open": "token recall"}, details={"open": details},
        faults=FAULTS, faithful=having, unscored="a wrong yes or no, which its closed rule drops",
    )  # fmt: skip


def nearest(said: str, candidates: Sequence[str]) -> str:
    """The candidate with the largest share of its words among those said, the first of several."""
    words = set(said.split())

    def share(candidate: str) -> float:
        own = set(candidate.split())
        return len(words & own) / len(own) if own else 0.0

    return max(candidates, key=share)


def _shared(said: str, truth: str) -> float:
    words = said.split()
    return len(set(truth.split()) & set(words)) / len(words) if words else 0.0


def _select(row: Prediction, *, untyped: bool) -> str:
    if row.answer_type in ("choice", "report") or row.options:
        return f"a {row.answer_type or 'choice'}, which it does not know"
    if untyped and not row.answer_type:
        return "its answer_type is neither open nor closed"
    return "" if row.truth.strip() else "its truth is an image"
