# SPDX-License-Identifier: Apache-2.0
"""Protocols against the public codes they are named after, fault by fault, and the laws of our own.

`golden_protocols.jsonl` holds hand-made rows and what those codes gave for each, run at the commits that the
protocols name as their source: a score, null where the code leaves a row out, "stops: ..." where it ends.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols import PROTOCOLS, protocol, score
from monai_unimedvl.evaluation.protocols.strict import (
    ARTICLE,
    chosen,
    is_bare,
    kind_of,
    polarity,
    refuses,
    strict_spelling,
    strict_token_f1,
)

LINES = [
    json.loads(line) for line in (Path(__file__).parent / "golden_protocols.jsonl").open(encoding="utf8")
]
ROWS = [Prediction(**{name: value for name, value in line.items() if name != "theirs"}) for line in LINES]
FAULTS = {name: [fault.name for fault in build(()).faults] for name, build in PROTOCOLS.items()}


def ask(name: str, **row: object) -> float | None:
    """The score of one row."""
    return score([Prediction("a", **row)], protocol(name)).hits[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "strict-v1"])
def test_a_faithful_protocol_scores_every_trap_as_its_public_code_does(name):
    found = score(ROWS, protocol(name, faithful=True), details=True)
    seen = 0
    for place, line in enumerate(LINES):
        theirs = line["theirs"][name]
        if isinstance(theirs["score"], str):
            assert f"stops: {found.stops[place].split(':')[0]}" == theirs["score"], line["id"]
            continue
        assert place not in found.stops and found.hits[place] == pytest.approx(theirs["score"]), line["id"]
        for measure, value in theirs.get("details", {}).items():
            assert found.details[f"open {measure}"][place] == pytest.approx(value, abs=1e-9), (
                line["id"],
                measure,
            )
            seen += 1
    assert seen > 10 or name in ("vlmevalkit-mcq", "vila-m3")


def test_the_copy_of_llavamed_in_medtrinity_lacks_one_fault():
    others = [name for name in FAULTS["llavamed-v1"] if name != "dropped"]
    found = score(ROWS, protocol("llavamed-v1", faithful=others))
    for line, hit in zip(LINES, found.hits, strict=True):
        assert hit == pytest.approx(line["theirs"]["llavamed-v1 of MedTrinity"]["score"]), line["id"]


@pytest.mark.parametrize(
    "name, fault",
    # "judged-twice" needs a judge: test_counting.py
    [(name, fault) for name in FAULTS for fault in FAULTS[name] if fault != "judged-twice"],
)
def test_each_fault_moves_some_row_and_is_explained(name, fault):
    rows = [*ROWS, Prediction("dots", truth="lung" + "." * 80, answer="lung", answer_type="open")]
    mended, faulty = (score(rows, protocol(name, faithful=having), details=True) for having in ((), [fault]))
    assert (mended.hits, mended.stops, mended.details) != (faulty.hits, faulty.stops, faulty.details)
    told = next(one for one in protocol(name).faults if one.name == fault)
    assert len(told.what) > 40 and told.where
    assert "faults" in str(faulty.protocol) and "faults" not in str(mended.protocol)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_row_has_a_score_or_a_reason(name):
    for having in ((), True):
        found = score(ROWS, protocol(name, faithful=having))
        for hit, why in zip(found.hits, found.why, strict=True):
            assert (hit is None) == bool(why)


@pytest.mark.parametrize(
    "truth, answer, expected",
    [
        ("no", "normal", 0), ("yes", "yes, abnormal", 1), ("no", "The lungs are normal.", 0), ("yes", "", 0),
        ("Yes", "Yes, there is no doubt", 1), ("no", "There is no mass.", 1), ("yes", "It is yes and no", 0),
        ("是", "是的，有肿块", 1), ("没有", "没有，肺部正常", 1), ("是", "不是", 0), ("否", "未见异常", 1),
        ("是", "是否有肿块", 0), ("left", "Left.", 1), ("left", "left lung", 0), ("left", "yes", 0),
    ],
)  # fmt: skip
def test_strict_reads_yes_and_no_as_words(truth, answer, expected):
    assert ask("strict-v1", truth=truth, answer=answer, answer_type="closed") == expected


@pytest.mark.parametrize(
    "truth, answer, expected",
    [
        ("Lung, heart", "heart and lung", 1), ("肺、心脏", "心脏和肺", 1), ("lung", "the lung.", 1),
        ("ER-", "ER+", 0), ("1.5 cm", "15 cm", 0), ("-5", "5", 0), ("> 5 cm", "5 cm", 0),
        ("x-ray", "X ray", 1),
        ("hepatitis A", "hepatitis", 0), ("lung", "", 0), ("lung", "I cannot answer this.", 0),
        ("Ｔ２", "t2", 1), ("1,000", "000, 1", 0),
    ],
)  # fmt: skip
def test_strict_tells_findings_apart_and_spellings_not(truth, answer, expected):
    assert ask("strict-v1", truth=truth, answer=answer, answer_type="open") == expected


@pytest.mark.parametrize(
    "answer, place",
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B. Normal", 1), ("B) Normal", 1), ("Answer: B", 1), ("normal", 1),
        ("The correct answer is **C**. Here's why", 2), ("A large mass", 3), ("abnormal", None), ("", None),
        ("A or B", None), ("A, B", None), ("There is a mass, no fracture", None), ("E", None), ("答案是B", 1),
        ("The chest is normal.", 1), ("a", 0), ("A-fib", None),
    ],
)  # fmt: skip
def test_strict_reads_one_option_or_none(answer, place):
    assert chosen(answer, ("Pneumonia", "Normal", "Fracture", "Mass")) == place


def test_an_option_within_another_is_not_chosen_by_it():
    assert chosen("no mass", ("mass", "no mass")) == 1 and chosen("a mass", ("mass", "no mass")) == 0


def test_refusals_are_told_but_scored_like_any_answer():
    assert (
        refuses("I’m sorry, I can't tell.")
        and refuses("抱歉，无法判断")
        and not refuses("cannot be excluded")
    )
    assert ask("strict-v1", truth="unable to answer", answer="Unable to answer.", answer_type="open") == 1


def test_a_better_of_several_truths_counts():
    row = {
        "truth": "heart",
        "references": ("cardiac shadow",),
        "answer": "Cardiac shadow",
        "answer_type": "open",
    }
    assert ask("strict-v1", **row) == 1
    found = score([Prediction("a", **row)], protocol("strict-v1"), details=True)  # type: ignore[arg-type]
    assert found.details["open token F1"] == [1.0]


WORDS = st.sampled_from(
    "yes no normal abnormal lung left heart the a A B . , 是 没有 肺 1.5 & and ER- mass".split()
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join) | st.text(max_size=12)
OPTIONS = st.lists(TEXTS.filter(str.strip), min_size=2, max_size=4, unique=True).map(tuple)
KINDS = st.sampled_from(["closed", "open", "choice"])


@st.composite
def items(draw, most=6):
    rows = []
    for number in range(draw(st.integers(1, most))):
        kind = draw(KINDS)
        options = draw(OPTIONS) if kind == "choice" else ()
        truth = draw(st.sampled_from(options) if options else TEXTS.filter(str.strip))
        answer = draw(TEXTS | st.just(truth))
        rows.append(Prediction(str(number), truth=truth, answer=answer, answer_type=kind, options=options))
    return rows


STRICT = protocol("strict-v1")


@settings(max_examples=80, deadline=None)
@given(items(1))
def test_strict_is_symmetric_and_bounded(rows):
    (row,) = rows
    if not row.answer.strip():
        assert score(rows, STRICT).hits == [0.0]
        return
    mirrored = Prediction(
        "0", truth=row.answer, answer=row.truth, answer_type=row.answer_type, options=row.options
    )
    there, back = score([row], STRICT, details=True), score([mirrored], STRICT, details=True)
    assert there.hits == back.hits and 0.0 <= there.mean() <= 1.0
    f1 = strict_token_f1(row.truth, row.answer)
    assert f1 == strict_token_f1(row.answer, row.truth) and 0.0 <= f1 <= 1.0


@settings(max_examples=30, deadline=None)
@given(items(), st.randoms())
def test_strict_does_not_depend_on_the_order_of_the_rows(rows, chance):
    mixed = list(rows)
    chance.shuffle(mixed)
    one, other = score(rows, STRICT), score(mixed, STRICT)
    assert one.mean() == other.mean()
    assert {row.id: hit for row, hit in zip(rows, one.hits, strict=True)} == {
        row.id: hit for row, hit in zip(mixed, other.hits, strict=True)
    }


@settings(max_examples=30, deadline=None)
@given(items())
def test_strict_never_falls_when_an_answer_becomes_the_truth_and_counts_every_item(rows):
    before = score(rows, STRICT)
    assert len(before.values()) == len(rows)
    for place, row in enumerate(rows):
        right = Prediction(
            row.id, truth=row.truth, answer=row.truth, answer_type=row.answer_type, options=row.options
        )
        after = score([*rows[:place], right, *rows[place + 1 :]], STRICT)
        assert after.mean() >= before.mean()
        if row.answer_type == "open" and strict_spelling(row.truth).strip(", "):
            assert after.hits[place] in (0.0, 1.0)
    empty = [
        Prediction(row.id, truth=row.truth, answer_type=row.answer_type, options=row.options) for row in rows
    ]
    assert score(empty, STRICT).mean() == 0.0


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_a_shared_word_more_never_lowers_f1(one, other):
    leads = any(ARTICLE.match(f"{strict_spelling(text)} zzz") for text in (one, other))
    assume(one and other and not leads)  # an article alone is a word; before another one it is none
    assert strict_token_f1(f"{one} zzz", f"{other} zzz") >= strict_token_f1(one, other) - 1e-12


def test_kinds_come_from_the_benchmark_else_from_the_truth():
    assert (
        kind_of(Prediction("a", truth="Yes")) == "closed" and kind_of(Prediction("a", truth="lung")) == "open"
    )
    assert kind_of(Prediction("a", truth="Yes", answer_type="open")) == "open"
    assert kind_of(Prediction("a", truth="B", options=("x", "y"))) == "choice"
    assert is_bare("没有") and not is_bare("normal") and polarity("normal") == ""


def test_names_and_faults_are_checked():
    assert str(protocol("medevalkit-rule", faithful=True)) == "medevalkit-rule 1, faults as published"
    assert protocol("llavamed-v1:substring").faithful == {"substring"}
    assert protocol("llavamed-v1:faithful").faithful == set(FAULTS["llavamed-v1"])
    with pytest.raises(ValueError, match="protocol is 'strict', expected one of strict-v1"):
        protocol("strict")
    with pytest.raises(
        ValueError, match="vila-m3 has no fault 'substring', expected faithful or some of spaces"
    ):
        protocol("vila-m3:substring")


def test_a_prompt_carries_the_suffix_of_its_kind_and_language():
    assert protocol("medevalkit-rule").prompt("Where?", "open").endswith("concisely.")
    assert "字母" in protocol("strict-v1").prompt("哪个?", "choice", "zh")
    assert protocol("vila-m3").prompt("Where?", "open") == "Where?"
