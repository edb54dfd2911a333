# SPDX-License-Identifier: Apache-2.0
"""Measures of reports against the packages that define them, and published examples."""

from __future__ import annotations

import math
import os
import random
import sys
import types

import pytest

pytest.importorskip("sacrebleu", reason="extra eval")
pytest.importorskip("rouge_score", reason="extra eval")
pytest.importorskip("nltk", reason="extra eval")

from monai_unimedvl.evaluation.counting import count_texts, table  # noqa: E402
from monai_unimedvl.evaluation.labels import CHEST, Keywords, label_f1, radeval  # noqa: E402
from monai_unimedvl.evaluation.overlap import bleu, cider_d, meteor, overlap, rouge_l  # noqa: E402
from monai_unimedvl.evaluation.predictions import Prediction  # noqa: E402

VOCABULARY = (
    "the left lung is clear there no effusion heart size normal small right pleural opacity 1.5 cm".split()
)
CHANCE = random.Random(0)
SAID = [" ".join(CHANCE.choices(VOCABULARY, k=CHANCE.randint(3, 14))) + "." for _ in range(30)]
TRUE = [
    [" ".join(CHANCE.choices(VOCABULARY, k=CHANCE.randint(3, 14))) + "." for _ in range(CHANCE.randint(1, 3))]
    for _ in range(30)
]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_that_of_sacrebleu(order):
    import sacrebleu

    references = [[some[n] if n < len(some) else None for some in TRUE] for n in range(3)]
    expected = sacrebleu.BLEU(lowercase=True, max_ngram_order=order).corpus_score(SAID, references).score
    found = bleu(SAID, TRUE, order)
    assert found.value == pytest.approx(expected / 100, abs=1e-6) and "version" in found.about
    single = sacrebleu.BLEU(lowercase=True, max_ngram_order=order, effective_order=True)
    assert found.each[4] == pytest.approx(single.sentence_score(SAID[4], TRUE[4]).score / 100, abs=1e-6)


def test_bleu_as_medq_takes_it_is_that_of_nltk():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    expected = sentence_bleu(
        [TRUE[0][0].split()], SAID[0].split(), smoothing_function=SmoothingFunction().method1
    )
    found = bleu(SAID[:1], [TRUE[0][:1]], variant="nltk-method1")
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert bleu([""], [["a"]], variant="nltk-method1").value == 0.0


def test_rouge_l_is_that_of_rouge_score_and_of_the_longest_common_subsequence():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [
        max(scorer.score(one, text)["rougeL"].fmeasure for one in some)
        for text, some in zip(SAID, TRUE, strict=True)
    ]
    found = rouge_l(SAID, TRUE)
    assert found.each == pytest.approx(expected, abs=1e-9)
    assert found.value == pytest.approx(sum(expected) / 30, abs=1e-9)
    # after Lin 2004: three of four words in their order
    assert rouge_l(["police kill the gunman"], [["police ended the gunman"]]).value == pytest.approx(3 / 4)


def test_meteor_is_nltks_published_example():
    said = "It is a guide to action which ensures that the military always obeys the commands of the party"
    true = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command "
        "of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    assert meteor([said], [true]).value == pytest.approx(0.6944, abs=1e-4)
    assert meteor([said], [true]).about == "nltk METEOR, no synonyms"
    assert meteor(["non matching"], [["this is a cat"]]).value == 0.0


def test_meteor_takes_wordnet_from_a_folder_only(tmp_path):
    with pytest.raises(
        ValueError, match="has no corpora/wordnet/data.noun: give a folder with WordNet, or none"
    ):
        meteor(["a"], [["a"]], wordnet=tmp_path)


def test_cider_d_equals_the_public_implementation():
    # texts drawn at random, scores from pycocoevalcap 1.2 (cider.cider_scorer)
    said = [
        "heart left pleural", "size the the right is is opacity", "",
        "lung no normal left clear there clear", "effusion is", "heart pleural normal pleural right opacity",
    ]  # fmt: skip
    true = [
        ["left right no lung clear small pleural the", "there", "heart pleural clear is the the"],
        ["the lung no size lung the pleural clear opacity"],
        ["clear there small the heart", "clear is right"],
        ["lung no normal left clear there"],
        ["no effusion right", "there no no no pleural lung the opacity"],
        ["the pleural normal pleural"],
    ]
    expected = [0.63598922, 1.4353796, 0.0, 8.81982299, 0.95902503, 3.67565419]
    found = cider_d(said, true)
    assert found.each == pytest.approx(expected, abs=1e-6)
    assert found.value == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert cider_d(["a b c d e", "x"], [["a b c d e"], ["y z"]]).each == pytest.approx([10.0, 0.0])
    assert cider_d(["a"], [["a"]]).value == 0.0  # one text: nothing is rare


def test_chinese_is_read_by_characters():
    found = overlap(["左肺有结节"], [["左肺下叶有结节"]], language="zh")
    assert found["ROUGE-L"].value == pytest.approx(2 * 5 / 12) and found["token F1"].value == pytest.approx(
        10 / 12
    )
    assert found["BLEU-1"].value > 0 and "METEOR (no synonyms)" in found


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="got 2 texts and 1 of references, expected a list of references"):
        overlap(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="texts as references"):
        overlap(["a"], ["a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="Text 0 has no reference"):
        bleu(["a"], [[]])
    with pytest.raises(ValueError, match="variant is 'meteor', expected one of sacrebleu, nltk-method1"):
        bleu(["a"], [["a"]], variant="meteor")


def test_keywords_see_negation_doubt_and_sentences():
    text = "No pleural effusion or pneumothorax. Possible pneumonia; heart is enlarged but no edema. "
    (found,) = Keywords(CHEST)([text + "Massive opacity."])
    assert {label for label, value in found.items() if value} == {"cardiomegaly", "opacity"}
    assert found["effusion"] is False and found["pneumothorax"] is False and found["edema"] is False
    assert found["pneumonia"] is None


def test_label_f1_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    chance = random.Random(1)
    names = ["a", "b", "c"]
    said, true = ([{k: chance.random() < 0.4 for k in names} for _ in range(40)] for _ in range(2))
    found = label_f1(said, true)
    grids = [[[one[k] for k in names] for one in some] for some in (true, said)]
    assert found.micro == pytest.approx(metrics.f1_score(*grids, average="micro"))
    assert found.macro == pytest.approx(metrics.f1_score(*grids, average="macro"))
    for place, name in enumerate(names):
        columns = [[row[place] for row in grid] for grid in grids]
        assert found.f1[name] == pytest.approx(metrics.f1_score(*columns))


def test_a_label_that_nobody_has_is_in_no_mean():
    found = label_f1([{"a": True, "b": False}], [{"a": True, "b": False}])
    assert found.f1 == {"a": 1.0, "b": None} and found.macro == 1.0 and found.n == {"a": 1, "b": 0}
    none = label_f1([{"a": False}], [{"a": False}])
    assert math.isnan(none.macro) and none.each == [1.0]
    assert label_f1([{"a": None}], [{"a": True}]).micro == 1.0
    assert label_f1([{"a": None}], [{"a": True}], uncertain=False).micro == 0.0
    with pytest.raises(ValueError, match="Text 0 differs in label 'a'"):
        label_f1([{"b": True}], [{"a": True}])
    with pytest.raises(ValueError, match="labels of 0 and 0 texts"):
        label_f1([], [])


class Played:
    """RadEval's face: takes names, gives a number a text, and sees whether the network is off."""

    seen: list[str] = []

    def __init__(self, metrics, per_sample):
        self.metrics = metrics

    def __call__(self, refs, hyps):
        from huggingface_hub import constants

        self.seen.append(f"{os.environ['HF_HUB_OFFLINE']} {constants.HF_HUB_OFFLINE}")
        if "green" in self.metrics:
            raise OSError("no such model in the cache")
        return {"radgraph_simple": [1.0, 0.5], "note": "text"}


def test_radeval_is_asked_offline_unless_told_otherwise(monkeypatch):
    with pytest.raises(ValueError, match="need RadEval, which is not installed: `pip install radeval`"):
        radeval(["a", "b"], ["a", "c"], ["radgraph"])
    monkeypatch.setitem(sys.modules, "radeval", types.SimpleNamespace(RadEval=Played))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert radeval(["a", "b"], ["a", "c"], ["radgraph"]) == {"radgraph_simple": [1.0, 0.5]}
    radeval(["a", "b"], ["a", "c"], ["radgraph"], download=True)
    assert Played.seen == ["1 True", "0 False"] and os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ValueError, match="RadEval lacks a model of green here .no such model.*download=True"):
        radeval(["a"], ["a"], ["green"])


def test_reports_of_a_file_are_measured_by_language():
    rows = [
        Prediction("a", truth="No effusion.", answer="no effusion", answer_type="report", patient="p"),
        Prediction("b", truth="Left effusion.", answer="", answer_type="report", patient="p"),
        Prediction("c", truth="肺部清晰", answer="肺部清晰", answer_type="report", language="zh"),
        Prediction("d", truth="yes", answer="yes"),
    ]
    english, chinese = count_texts(rows, labeller=Keywords(CHEST))
    values = {line.measure: line for line in english.lines}
    assert values["ROUGE-L"].n == 2 and values["ROUGE-L"].value == 0.5 and english.empty == 1
    assert not math.isnan(values["ROUGE-L"].low) and math.isnan(values["BLEU-4"].low)
    assert values["label F1, micro"].value == 0.0
    assert "| texts 1 | zh | report | token F1 | 1 | 1.000" in table([english, chinese])
    assert count_texts(rows[3:]) == []
