# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate --predictions`: typed as a user types it."""

from __future__ import annotations

import json

import pytest

from monai_unimedvl.cli.command import main


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("qid,gt,pred\n1,no,normal\n2,yes,Yes.\n3,left lung,the left lung\n", "utf8")
    return path


NAMES = ["--columns", "qid=id", "gt=truth", "pred=answer"]


def test_a_file_is_scored_by_protocols_without_a_model(file, capsys):
    command = ["evaluate", "--predictions", str(file), *NAMES, "--protocols", "strict-v1", "medevalkit-rule"]
    assert main([*command, "--details"]) == 0
    told = capsys.readouterr().out
    assert "| strict-v1 1 | en | closed | accuracy | 2 | 0.500" in told and "open token F1" in told
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocols"][0]["rows"] == 3


@pytest.mark.parametrize(
    "name, holds", [("t.md", "| protocol |"), ("t.json", '"lines"'), ("t.csv", "strict-v1 1,en")]
)
def test_the_table_is_written_in_three_forms(file, tmp_path, name, holds, capsys):
    out = tmp_path / "made" / name
    assert main(["evaluate", "--predictions", str(file), *NAMES, "--out", str(out)]) == 0
    assert holds in out.read_text("utf8") and str(out) in capsys.readouterr().out


def test_rows_are_chosen_in_the_open(file, capsys):
    command = ["evaluate", "--predictions", str(file), *NAMES, "--protocols", "strict-v1"]
    assert main([*command, "--where", "truth=yes"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("1 of 3 rows: truth yes\n") and "| closed | accuracy | 1 | 1.000" in told


def test_two_protocols_are_explained(file, tmp_path, capsys):
    command = [
        "evaluate",
        "--predictions",
        str(file),
        *NAMES,
        "--explain",
        "medevalkit-rule:faithful",
        "strict-v1",
    ]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "medevalkit-rule without fault substring | 0 | 0 | 0 | 1 |" in told
    assert main([*command, "--out", str(tmp_path / "why.csv")]) == 0
    assert (tmp_path / "why.csv").read_text("utf8").startswith("rule,enter,leave,rise,fall,before,after\n")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--explain", "strict-v1", "vila-m3"], "add --predictions FILE"),
        (["--predictions", "FILE"], "has a column 'qid', which no prediction has"),
        (["--predictions", "none.csv"], "is no prediction file"),
        (["--predictions", "FILE", *NAMES, "--items", "4"], "holds 3 rows, expected 4: check the path"),
        (["--predictions", "FILE", *NAMES, "--protocols", "strict"], "expected one of strict-v1"),
        (["--predictions", "FILE", *NAMES, "--out", "table.xls"], "ends in .md, .json, .csv"),
        (["--predictions", "FILE", "--columns", "gt"], "expected NAME=VALUE"),
        (["--predictions", "FILE", *NAMES, "--where", "section=val"], "leaves none of 3 rows (section val)"),
        (["--predictions", "FILE", *NAMES, "--where", "part=val"], "--where has column 'part', expected one"),
        (["--predictions", "FILE", *NAMES, "--judge", "http://127.0.0.1:9/v1"], "name the model"),
        (["--predictions", "FILE", *NAMES, "--judge", "none.jsonl"], "is no file of replies"),
        (["--predictions", "FILE", *NAMES, "--judge-prompt", "none.txt"], "is no prompt, expected a text"),
        (["--predictions", "FILE", *NAMES, "--explain", "a", "b", "--judge", "x"], "takes two protocols"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(file, words, message, capsys):
    assert main(["evaluate", *(str(file) if word == "FILE" else word for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_reports_are_measured_as_texts(tmp_path, capsys):
    path = tmp_path / "reports.jsonl"
    row = {"id": "1", "truth": "Left pleural effusion.", "answer": "left effusion", "answer_type": "report"}
    path.write_text(json.dumps(row) + "\n", "utf8")
    pytest.importorskip("sacrebleu", reason="extra eval")
    assert main(["evaluate", "--predictions", str(path), "--labels"]) == 0
    told = capsys.readouterr().out
    assert "| texts 1 | en | report | label F1, micro | 1 | 1.000 |" in told and "strict" not in told
    assert main(["evaluate", "--predictions", str(path), "--radeval", "radgraph"]) == 2
    assert "need RadEval, which is not installed" in capsys.readouterr().err
