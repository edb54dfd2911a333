# SPDX-License-Identifier: Apache-2.0
"""The prediction file: what goes in comes out, and what no score can be taken from is refused by name."""

from __future__ import annotations

import json

import pytest

from monai_unimedvl.evaluation.predictions import (
    Prediction,
    check,
    read_predictions,
    write_predictions,
)  # fmt: skip

pytest.importorskip("pyarrow")

FULL = Prediction(
    "q1", truth="肺", answer="左肺", question="器官?", prompt="<image>器官?", references=("肺部",),
    benchmark="slake", answer_type="open", question_type="Organ", language="zh", options=("肺", "肝"),
    modality="ct", image="xmlab1", patient="p1", groups={"content": "organ"}, seed=7, weights="ab",
    protocol="strict-v1", logprob=-1.5, tokens=3, stop_reason="end", scores={"F1": 0.5, "Dice": None},
    baselines={"F1": {"blind": 0.25}}, ceiling={"F1": 1.0},
)  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    rows = [FULL, Prediction("q2", truth="yes", answer="")]
    path = write_predictions(rows, tmp_path / "a" / "p.parquet", {"weights": "ab"})
    found = read_predictions(path)
    assert found.rows == rows and found.about == {"items": 2, "weights": "ab"}
    again = write_predictions(found.rows, tmp_path / "b.parquet", {"weights": "ab"})
    assert path.read_bytes() == again.read_bytes()
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["p.parquet"]


def test_parts_are_one_file_and_a_shared_id_is_found_across_them(tmp_path):
    write_predictions([FULL], tmp_path / "0.parquet", {"items": 2})
    write_predictions([Prediction("q2", truth="yes")], tmp_path / "1.parquet", {"items": 2})
    assert [row.id for row in read_predictions(tmp_path).rows] == ["q1", "q2"]
    write_predictions([FULL], tmp_path / "2.parquet", {"items": 2})
    with pytest.raises(ValueError, match="2.parquet row 1 has id 'q1' as 0.parquet row 1 has: keep one"):
        read_predictions(tmp_path)


def test_a_file_that_holds_fewer_rows_than_its_run_is_refused(tmp_path):
    path = write_predictions([FULL], tmp_path / "p.parquet", {"items": 451})
    with pytest.raises(ValueError, match="p.parquet holds 1 rows, expected 451: finish the run"):
        read_predictions(path)
    assert len(read_predictions(path, partial=True)) == 1
    with pytest.raises(ValueError, match="holds 1 rows, expected 3"):
        read_predictions(path, items=3, partial=True)


def test_tables_of_others_are_read_under_their_names(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text(
        '\ufeffqid,gt,pred,options,extra\n1,yes,"Yes, it is","[""a"", ""b""]",x\n2,no,,,x\n', "utf8"
    )
    names = {"qid": "id", "gt": "truth", "pred": "answer"}
    rows = read_predictions(path, columns=names, ignore=["extra"]).rows
    assert rows == [
        Prediction("1", truth="yes", answer="Yes, it is", options=("a", "b")), Prediction("2", truth="no"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="theirs.csv has a column 'qid', which no prediction has"):
        read_predictions(path)
    with pytest.raises(ValueError, match="no column 'ground', which was to be renamed"):
        read_predictions(path, columns={"ground": "truth"})


@pytest.mark.parametrize(
    "line, message",
    [
        ({"id": "a", "truth": "yes"}, "p.jsonl has no column 'answer', expected id, answer and truth"),
        ({"id": "a", "answer": "yes"}, "p.jsonl has no column 'truth'"),
        ({"id": "a", "truth": "y", "anwser": "y"}, "column 'anwser'.*rename it to 'answer', or leave it out"),
        ({"id": "a", "truth": "y", "answer": float("nan")}, "row 1 has NaN in answer.*counts as wrong"),
        ({"id": "a", "truth": "y", "answer": None}, "row 1 has nothing in answer, expected text"),
        ({"id": "a", "truth": " ", "answer": "y"}, "row 1 .id a. has no ground truth: write the true answer"),
        ({"id": "", "truth": "y", "answer": "y"}, "row 1 has no id: name the item"),
        (
            {"id": "a", "truth": "y", "answer": "y", "answer_type": "yes/no"},
            "answer_type 'yes/no': write one",
        ),
        ({"id": "a", "truth": "y", "answer": "y", "scores": {"F1": float("nan")}}, "NaN in scores: an undef"),
        ({"id": "a", "truth": "y", "answer": "y", "ceiling": {"PSNR": float("inf")}}, "has inf in ceiling"),
        (
            {"id": "a", "truth": "y", "answer": "y", "baselines": {"F1": {"b": float("nan")}}},
            "NaN in baselin",
        ),
        ({"id": "a", "truth": "y", "answer": "y", "logprob": float("nan")}, "has logprob NaN"),
        ({"id": "a", "truth": "y", "answer": "y", "seed": "x"}, "row 1 has 'x' in seed, expected a number"),
        ({"id": "a", "truth": "y", "answer": "y", "options": 3}, "row 1 has 3 in options, expected a list"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_with_its_mend(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_the_same_id_may_come_again_in_another_setting_only():
    check([FULL, Prediction("q1", truth="yes")])
    with pytest.raises(ValueError, match="predictions row 2 has id 'q1' as predictions row 1 has"):
        check([FULL, FULL])
    with pytest.raises(ValueError, match="holds no rows"):
        check([])


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.parquet", b"PAR1"),
        ("p.txt", b"x"),
        ("p.jsonl", b"[1]\n"),
        ("cut.csv", b'id,truth,answer\n1,no,no\n2,yes,"Yes, it\n3,no,no\n'),  # one quote takes in all below
        ("tail.csv", b'id,truth,answer\n1,no,"no"t\n'),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} "):
        read_predictions(tmp_path / name)
    (tmp_path / "bare.csv").write_text("id,truth,answer\n")
    with pytest.raises(ValueError, match="holds no rows, expected one for each item"):
        read_predictions(tmp_path / "bare.csv")
    with pytest.raises(ValueError, match="is no prediction file"):
        read_predictions(tmp_path / "absent.parquet")
