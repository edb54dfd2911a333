# SPDX-License-Identifier: Apache-2.0
"""How much of a true report or caption is said: BLEU, ROUGE-L, METEOR, CIDEr-D, token F1.

    scores = overlap(["no effusion"], [["no pleural effusion"]])
    scores["BLEU-4"].value, scores["ROUGE-L"].each

BLEU is sacrebleu's, ROUGE-L rouge-score's with its stemmer, METEOR nltk's; CIDEr-D is written here, after
Vedantam et al. 2015 (arXiv 1411.5726), as no kept package has it. Nothing is downloaded: METEOR goes without
synonyms, and says so, unless a folder with WordNet is given.
  N texts   each has one reference or more
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_unimedvl.evaluation.protocols.strict import strict_token_f1
from monai_unimedvl.packages import needed

WORD = re.compile(r"[\u3400-\u9fff]|\d+(?:\.\d+)?|[^\W\d_\u3400-\u9fff]+(?:'[a-z]+)?")
ORDERS, SIGMA = 4, 6.0  # of CIDEr-D
BLEU_VARIANTS = ("sacrebleu", "nltk-method1")


@dataclass(frozen=True)
class Overlap:
    """A measure of N texts.

    Args:
        value: of all texts together; for BLEU not the mean of `each`.
        each: of each text.
        about: which implementation, with which settings.
    """

    value: float
    each: list[float]
    about: str


def overlap(
    said: Sequence[str], truths: Sequence[Sequence[str]], *, language: str = "en",
    wordnet: str | Path | None = None, variant: str = "sacrebleu",
) -> dict[str, Overlap]:  # fmt: skip
    """Every measure of N texts against their references.

    Args:
        language: "en", or "zh": then characters are words.
        wordnet: folder with corpora/wordnet, for METEOR with synonyms.
        variant: of BLEU, see `bleu`.

    Raises:
        ValueError: no texts, not as many lists of references, an empty one, or a package is missing.
    """
    _paired(said, truths)
    f1 = [max(strict_token_f1(text, one) for one in some) for text, some in zip(said, truths, strict=True)]
    return {
        **{f"BLEU-{n}": bleu(said, truths, n, language=language, variant=variant) for n in range(1, 5)},
        "ROUGE-L": rouge_l(said, truths, language=language),
        "METEOR" if wordnet else "METEOR (no synonyms)": meteor(said, truths, wordnet=wordnet),
        "CIDEr-D": cider_d(said, truths),
        "token F1": Overlap(_mean(f1), f1, "token F1 of strict-v1"),
    }


def bleu(
    said: Sequence[str], truths: Sequence[Sequence[str]], order: int = 4, *, language: str = "en",
    variant: str = "sacrebleu",
) -> Overlap:  # fmt: skip
    """BLEU up to an order, in [0, 1]: of the corpus, and of each text.

    Args:
        variant: "sacrebleu" (lower case, 13a or zh tokens, each text with the orders that it has) or
            "nltk-method1" (words between spaces, smoothing method1, mean over texts) as MedQ-Uni takes it.
    """
    _paired(said, truths)
    if variant not in BLEU_VARIANTS:
        raise ValueError(
            f"variant is {variant!r}, expected one of {', '.join(BLEU_VARIANTS)}: use one of them."
        )
    if variant == "nltk-method1":
        module = needed("nltk.translate.bleu_score", "This measure", "eval")
        smooth = module.SmoothingFunction().method1
        weights = [1 / order] * order
        each = []
        for text, some in zip(said, truths, strict=True):
            split = [one.split() for one in some]
            score = module.sentence_bleu(split, text.split(), weights, smooth) if text.split() else 0.0
            each.append(float(score))
        return Overlap(_mean(each), each, "nltk sentence BLEU, method1, words between spaces, mean")
    metrics = needed("sacrebleu.metrics", "This measure", "eval")
    settings = {"lowercase": True, "max_ngram_order": order, "tokenize": "zh" if language == "zh" else "13a"}
    corpus, single = metrics.BLEU(**settings), metrics.BLEU(**settings, effective_order=True)
    width = max(map(len, truths))
    columns = [[some[n] if n < len(some) else None for some in truths] for n in range(width)]
    value = corpus.corpus_score(list(said), columns).score / 100
    each = [
        single.sentence_score(text, list(some)).score / 100 for text, some in zip(said, truths, strict=True)
    ]
    return Overlap(value, each, f"sacrebleu {corpus.get_signature()}")


def rouge_l(said: Sequence[str], truths: Sequence[Sequence[str]], *, language: str = "en") -> Overlap:
    """F of the longest common subsequence of words, the best over the references, mean over texts."""
    _paired(said, truths)
    scorer = needed("rouge_score.rouge_scorer", "This measure", "eval")
    own = _Words() if language == "zh" else None
    rouge = scorer.RougeScorer(["rougeL"], use_stemmer=language != "zh", tokenizer=own)
    each = [
        float(rouge.score_multi(list(some), text)["rougeL"].fmeasure)
        for text, some in zip(said, truths, strict=True)
    ]
    return Overlap(_mean(each), each, f"rouge-score rougeL F, {'characters' if own else 'stemmed'}")


def meteor(
    said: Sequence[str], truths: Sequence[Sequence[str]], *, wordnet: str | Path | None = None
) -> Overlap:
    """METEOR of nltk over words in lower case, mean over texts.

    Args:
        wordnet: folder that holds corpora/wordnet; None matches words and stems only.

    Raises:
        ValueError: the folder holds no WordNet.
    """
    _paired(said, truths)
    module = needed("nltk.translate.meteor_score", "This measure", "eval")
    known = _NoSynonyms() if wordnet is None else _wordnet(Path(wordnet))
    each = [
        float(module.meteor_score([words(one) for one in some], words(text), wordnet=known))
        for text, some in zip(said, truths, strict=True)
    ]
    return Overlap(_mean(each), each, f"nltk METEOR, {'no synonyms' if wordnet is None else 'WordNet'}")


def cider_d(said: Sequence[str], truths: Sequence[Sequence[str]]) -> Overlap:
    """CIDEr-D over words in lower case, in [0, 10]; how rare an n-gram is comes from these references.

    With a single text every n-gram is in every reference list, so the score is 0.
    """
    _paired(said, truths)
    ours = [_grams(words(text)) for text in said]
    theirs = [[_grams(words(one)) for one in some] for some in truths]
    seen = Counter(gram for some in theirs for gram in set().union(*some))
    total = math.log(len(said))

    def weigh(grams: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for gram, number in grams.items():
            vectors[len(gram) - 1][gram] = number * (total - math.log(max(1, seen[gram])))
        return vectors

    each = []
    for mine, some in zip(ours, theirs, strict=True):
        vectors, length = weigh(mine), _length(mine)
        found = []
        for one in some:
            others = weigh(one)
            penalty = math.exp(-((length - _length(one)) ** 2) / (2 * SIGMA**2))
            found.append(
                penalty * _mean([_clipped_cosine(a, b) for a, b in zip(vectors, others, strict=True)])
            )
        each.append(10 * _mean(found))
    return Overlap(
        _mean(each), each, f"CIDEr-D, orders 1 to {ORDERS}, sigma {SIGMA:g}, document counts of these"
    )


def words(text: str) -> list[str]:
    """Words of a text in lower case without punctuation; of Chinese its characters."""
    return WORD.findall(text.casefold())


def _grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[at : at + n]) for n in range(1, ORDERS + 1) for at in range(len(tokens) - n + 1)
    )


def _length(grams: Mapping[tuple[str, ...], int]) -> int:
    """Pairs of words, as the public implementation measures length."""
    return sum(number for gram, number in grams.items() if len(gram) == 2)


def _clipped_cosine(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> float:
    """Cosine in which a gram counts at most as often as the reference has it."""
    norms = [math.sqrt(math.fsum(x * x for x in one.values())) for one in (ours, theirs)]
    shared = math.fsum(min(x, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, x in ours.items())
    return shared / (norms[0] * norms[1]) if all(norms) else shared


def _paired(said: Sequence[str], truths: Sequence[Sequence[str]]) -> None:
    if not said or len(said) != len(truths) or isinstance(truths[0], str):
        what = (
            "texts as references" if truths and isinstance(truths[0], str) else f"{len(truths)} of references"
        )
        raise ValueError(
            f"overlap got {len(said)} texts and {what}, expected a list of references for each text."
        )
    if empty := [number for number, some in enumerate(truths) if not some]:
        raise ValueError(f"Text {empty[0]} has no reference, expected one at least: give its truth.")


class _NoSynonyms:
    """In the place of WordNet: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        return []


class _Words:
    """A tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _wordnet(folder: Path) -> Any:
    if not (folder / "corpora" / "wordnet" / "data.noun").is_file():
        raise ValueError(f"{folder} has no corpora/wordnet/data.noun: give a folder with WordNet, or none.")
    nltk: Any = needed("nltk", "This measure", "eval")
    if str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
    return needed("nltk.corpus", "This measure", "eval").wordnet


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
