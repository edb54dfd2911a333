# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data STEP`: every step of the table as a command, and its errors as one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sources import nifti, png

from monai_unimedvl.cli import main
from monai_unimedvl.cli.data_steps import COMMANDS
from monai_unimedvl.data.record import Record
from monai_unimedvl.data.step import STEPS


def run(*words: object) -> int:
    try:
        return main(["data", *map(str, words)])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def test_the_help_names_every_command_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in [*COMMANDS, *(name for name in STEPS if not name.startswith("ingest-"))]:
        assert f" {name} " in said, name
    assert all(name.removeprefix("ingest-") in said for name in STEPS)


@pytest.mark.parametrize("name", [*COMMANDS, *STEPS])
def test_every_one_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = name.split("-", 1) if name.startswith("ingest-") else [name]
    assert run(*words, "--help") == 0
    assert f"Example:\n  unimedvl data {' '.join(words)} " in capsys.readouterr().out


def test_a_source_makes_a_corpus_and_a_report_without_paths(tmp_path: Path, capsys) -> None:
    nifti(tmp_path / "in" / "sub-1_T1w.nii")
    (tmp_path / "in" / "sub-2_T1w.nii").write_bytes(b"broken")
    words = ["ingest", "nifti", tmp_path / "in", "--dataset", "d", "--modality", "mri", "--public"]
    assert run(*words, "--out", tmp_path / "out", "--slices", 2) == 0
    said = capsys.readouterr().out
    assert "2 in = 1 kept + 1 rejected; 2 records" in said and "1 image-damaged" in said
    assert "patients were told from each other by a name or number in 2 records.\n" in said, "sub-1 is one"
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert [Record.from_json(json.loads(line)).modality for line in lines] == ["mri", "mri"]
    report = (tmp_path / "out" / "records.report.json").read_text()
    assert json.loads(report)["reasons"] == {"image-damaged": 1} and str(tmp_path) not in report
    assert run(*words, "--out", tmp_path / "out") == 2
    assert "records.jsonl is there already" in capsys.readouterr().err
    ct = [*words[:-3], "--modality", "ct", "--public", "--out", tmp_path / "ct", "--json"]
    assert run(*ct, "--settings", "window=lung", "nonfinite=0") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["in"] == 2 and len(values["outputs"]) == 3
    assert run(*words, "--out", tmp_path / "files", "--slices", 2, "--patient-in", "person-([0-9]+)") == 0
    said = capsys.readouterr().out
    assert "by file alone in 2 records; records of one patient can come into" in said
    assert "Say --patient-in PATTERN." in said
    report = json.loads((tmp_path / "files" / "records.report.json").read_text())
    assert report["patients_told_by"] == {"file": 2}


def test_a_source_of_which_nothing_is_kept_is_no_success(tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub-2_T1w.nii").write_bytes(b"broken")
    words = ["ingest", "nifti", tmp_path / "in", "--dataset", "d", "--modality", "mri", "--public"]
    assert run(*words, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().out
    assert (
        f"nothing was kept, expected some records: {tmp_path / 'out' / 'records.rejects.jsonl'} says why"
        in said
    )
    assert "image-damaged" in (tmp_path / "out" / "records.rejects.jsonl").read_text(), "they say why"


@pytest.mark.parametrize(
    "words, message",
    [
        (["{in}", "--modality", "xmri"], "'xmri' is not"),
        (["{in}"], "has no modality"),
        (["{in}/x", "--modality", "ct"], "not exist"),
        (["{in}", "--modality", "ct", "--settings", "x"], "expected KEY=VALUE"),
        (["{in}", "--modality", "ct", "--slices", "0"], "slices is 0, expected 1 or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_exit_code_2(words, message, tmp_path: Path, capsys) -> None:
    nifti(tmp_path / "in" / "a.nii")
    places = {"in": str(tmp_path / "in")}
    given = [word.format(**places) for word in words]
    assert run("ingest", "nifti", *given, "--out", tmp_path / "out", "--dataset", "d") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err and err.startswith("unimedvl data: ")
    assert not (tmp_path / "out").exists()


def test_records_that_leave_their_images_behind_say_where_these_are(tmp_path: Path, capsys) -> None:
    png(tmp_path / "in" / "images" / "a.png")
    (tmp_path / "in" / "a.txt").write_text("FINDINGS: Clear lungs.")
    words = ["ingest", "reports", tmp_path / "in", "--images", tmp_path / "in" / "images", "--dataset", "d"]
    assert run(*words, "--modality", "xray", "--public", "--out", tmp_path / "out") == 0
    assert str(tmp_path) not in (tmp_path / "out" / "records.report.json").read_text()
    records = tmp_path / "out" / "records.jsonl"
    capsys.readouterr()
    assert run("textify", records, "--out", tmp_path / "out" / "words.jsonl") == 0
    assert "--root" not in capsys.readouterr().out
    assert run("textify", records, "--out", tmp_path / "far" / "words.jsonl") == 0
    assert f"say --root {tmp_path / 'out'} to the next step" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["ingest"], ["ingest", "paper", "x"], ["nothing"]])
def test_unknown_words_are_refused(words, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert "invalid choice" in (said := capsys.readouterr().err) or "required" in said


def test_a_package_that_is_missing_is_named_and_skips_no_picture(tmp_path: Path, capsys, monkeypatch) -> None:
    png(tmp_path / "in" / "a.png")
    monkeypatch.setitem(sys.modules, "imagehash", None)  # as if it were not installed
    assert run("prints", tmp_path / "in", "--name", "b", "--out", tmp_path / "b.jsonl") == 2
    assert "needs imagehash, which is not installed: pip install" in capsys.readouterr().err


def test_rejects_of_a_step_say_ids_lines_and_files_by_number(tmp_path: Path) -> None:
    row = {"id": "r1", "main_task_type": "image-to-text", "sub_task_type": "vqa", "modality": "ct",
           "dataset": "d", "licence": "MIT", "source": "s",
           "message": [{"from": "gpt", "value": "Liver, spleen, kidneys and aorta are normal here."}],
           "input_img": [{"path": "Quasimodo/Frollo.png", "height": 300, "width": 300}]}  # fmt: skip
    (tmp_path / "Esmeralda.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "Quasimodo.jsonl").write_text("no JSON\n" + json.dumps({**row, "id": "Claude Frollo"}))
    names = [tmp_path / "Esmeralda.jsonl", tmp_path / "Quasimodo.jsonl"]
    assert run("coarse", *names, "--out", tmp_path / "kept.jsonl", "--quiet") == 0
    said = (tmp_path / "kept.rejects.jsonl").read_text("utf8")
    rejects = [json.loads(line) for line in said.splitlines()]
    assert [(each["code"], each.get("id"), each.get("place")) for each in rejects] == [
        ("image-missing", "r1", None),
        ("bad-json", None, "line 1 of file 2"),
        ("wrong-value", None, "line 2 of file 2"),
    ]
    assert not any(word in said for word in ("Quasimodo", "Esmeralda", "Frollo"))
