# SPDX-License-Identifier: Apache-2.0
"""The words of the command line, and its errors: one line on stderr, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monai_unimedvl import __version__
from monai_unimedvl.cli import main as run
from monai_unimedvl.cli import verbs
from monai_unimedvl.cli.command import EDITS, MASKS, _tell, parser
from monai_unimedvl.data.atlas import INSTRUCTIONS, LEGENDS

ROOT = Path(__file__).resolve().parents[2]
VERBS = [name for action in parser()._actions if action.choices for name in action.choices]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, command):
    code, out, _ = command(verb, "--help", own_model=True)
    assert code == 0 and f"Example:\n  unimedvl {verb} " in out
    assert {"--out", "--json"} <= set(re.findall(r"--[\w-]+", out))


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_the_help_is_understood(verb):
    text = next(action.choices[verb].epilog for action in parser()._actions if action.choices)
    words = re.findall(r'"[^"]*"|\S+', re.search(r"unimedvl (.+)", text)[1])
    assert parser().parse_args([word.strip('"') for word in words]).verb == verb


def test_a_mask_is_also_known_by_the_name_that_scores_give_it() -> None:
    for name in ("tissue", "seg-tissue"):
        assert parser().parse_args(["segment", "x.png", "--task", name]).task == "tissue"


def test_help_loads_nothing_heavy():
    heavy = ["torch", "monai", "numpy", "transformers", "nibabel", "PIL"]
    code = "import sys; from monai_unimedvl.cli.command import parser; parser().format_help();"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module():
    words = [sys.executable, "-m", "monai_unimedvl", "--version"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"unimedvl {__version__}"


def test_the_presets_are_the_instructions_of_the_corpus():
    assert {f"seg-{name}" for name in MASKS} == set(LEGENDS)
    assert set(EDITS) | set(LEGENDS) | {"caption"} == set(INSTRUCTIONS)


BAD = [
    (["ask", "{picture}", " "], "question is empty.*ask something"),
    (["report", "{picture}", "--prompt", ""], "--prompt is empty"),
    (["draw", ""], "words are empty.*say what to draw"),
    (["edit", "{picture}", ""], "instruction is empty"),
    (["edit", "{picture}"], "either an instruction in words or --task"),
    (["edit", "{picture}", "Stain.", "--task", "sr4"], "either an instruction in words or --task"),
    (["ask", "{bad}/dot.png", "?"], "dot.png has 1x1 pixels, but each side needs at least 8"),
    (["ask", "{bad}/huge.png", "?"], r"huge.png has .*400[,_]?000[,_]?000|20000x20000.*at most 20,000,000"),
    (["ask", "{bad}/nan.nii", "?", "--modality", "mri"], "nan.nii has 1 values that are NaN or Inf"),
    (["ask", "{bad}/five.npy", "?", "--modality", "mri"], r"five.npy.*5 channels.*1 or 3"),
    (
        ["ask", "{bad}/series.nii", "?", "--modality", "mri"],
        "series.nii is 4-D.*where one 3-D volume is needed",
    ),
    (["ask", "{picture}", "word " * 3000], "context"),
    (["ask", "{scan}", "?", "--modality", "xmri"], "modality 'xmri' is not known"),
    (["ask", "{scan}", "?"], "does not say how to read its values: if it is an image, add its modality"),
    (["ask", "{bad}/cut.png", "?"], "cut.png cannot be read as PNG"),
    (["ask", "{bad}/cut.nii", "?", "--modality", "mri"], "cut.nii cannot be read as NIfTI"),
    (["ask", "{bad}/cut.nii.gz", "?", "--modality", "mri"], "cut.nii.gz cannot be read as NIfTI"),
    (["ask", "{bad}/nothing.png", "?"], "nothing.png is empty"),
    (["ask", "{bad}/nothing.dcm", "?"], "nothing.dcm is empty"),
    (["ask", "{bad}/plan.dcm", "?"], "plan.dcm is DICOM of modality RTPLAN and holds no image"),
    (["ask", "{bad}/words.txt", "?", "--modality", "mri"], "words.txt has an unknown suffix"),
    (["ask", "{bad}/empty", "?", "--modality", "mri"], "holds no images"),
    (["ask", "{bad}/empty", "?"], "holds no images"),
    (["ask", "{bad}/words.txt", "?"], "words.txt has an unknown suffix"),
    (["ask", "{bad}/noise.dcm", "?"], r"noise.dcm holds no pixels \(no DICOM header\)"),
    (["edit", "{bad}/noise.dcm", "Stain."], r"noise.dcm holds no pixels \(no DICOM header\)"),
    (["ask", "{bad}/noise.nii.gz", "?"], "noise.nii.gz cannot be read as NIfTI"),
    (["ask", "{bad}/absent.png", "?"], "absent.png does not exist"),
    (["ask", "{scan}", "?", "--modality", "mri", "--slice", "99"], "slice '99' came, but .* from 0 to 19"),
    (["ask", "{scan}", "?", "--modality", "ct", "--window", "heart"], "window 'heart' is not known"),
    (["ask", "{scan}", "?", "--modality", "ct", "--window", "[5, 1]"], "low=5.*high must be above low"),
    (["ask", "{scan}", "?", "--modality", "mri", "--settings", "time=1"], "no setting 'time'"),
    (["ask", "{picture}", "?", "--device", "quantum"], "--device quantum cannot be used"),
    (["ask", "{picture}", "?", "--temperature", "-1"], "temperature is -1"),
    (["ask", "{picture}", "?", "--out", "{made}/answer.txt"], "answer.txt.*a name in .json or .dcm"),
    (["edit", "{picture}", "Stain.", "--guidance", "0.5"], "text=0.5.*at least 1"),
    (["edit", "{picture}", "Stain.", "--image-guidance", "2"], "acts only with --guidance above 1"),
    (["draw", "T1", "--guidance", "2", "--image-guidance", "2"], "has no image: add one, or use image=1"),
    (["draw", "T1", "--size", "60x64"], r"size is \(60, 64\), expected .* multiples of 8"),
    (["draw", "T1", "--out", "{made}/a.jpg"], "a.jpg.*a name in .png or .tiff or .tif is expected"),
    (["edit", "{picture}", "Stain.", "--out", "{picture}"], "is the input itself"),
    (["edit", "{picture}", "Stain.", "--out", "{made}/a.nii"], "has no place in mm: write a .png"),
    (["edit", "{scan}", "Stain.", "--modality", "mri", "--count", "3"], "one slice is edited at a time"),
    (["draw", "T1", "--out", "{picture}/a.png"], "cannot be written"),
    (["evaluate", "--atlas", "{bad}/absent", "--out", "{made}"], "--atlas .* is no folder"),
    (["bundle", "copy", "nothing", "{made}/x"], "no bundle 'nothing'"),
    (["bundle", "copy"], "copy needs a bundle's name and a new folder"),
    (["data", "fetch-atlas", "--only", "nothing", "--yes"], "unknown atlas source 'nothing'"),
]


@pytest.mark.parametrize("words, message", BAD, ids=[f"{i}-{words[0]}" for i, (words, _) in enumerate(BAD)])
def test_bad_input_is_one_line_and_exit_code_2(words, message, command, bad, scan, picture, tmp_path):
    places = {"bad": bad, "scan": scan, "picture": picture, "made": tmp_path / "made"}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = command(*(word.format(**places) for word in words), "--quiet")
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"unimedvl {words[0]}: ")
    assert re.search(message, err), err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "words",
    [["segment", "x.png", "--task", "heart"], ["draw", "T1", "--count", "0"], ["draw", "T1", "--size", "big"],
     ["ask", "x.png", "?", "--settings", "volume"], ["draw", "T1", "--seed", "9" * 20], ["paint"], []],
)  # fmt: skip
def test_unknown_words_are_refused_with_exit_code_2(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(words)
    assert re.search("invalid choice|expected|required", capsys.readouterr().err)


def test_a_model_that_is_not_there_or_does_not_fit_is_named(command, model, picture, tmp_path):
    code, _, err = command("ask", picture, "?", "--model", tmp_path / "absent", own_model=True)
    assert code == 2 and re.search("neither a folder nor a shipped bundle", err)
    other = tmp_path / "other"
    shutil.copytree(model, other)
    config = json.loads((other / "models" / "config.json").read_text())
    config["network"]["decoder"]["hidden_size"] = 64
    (other / "models" / "config.json").write_text(json.dumps(config))
    code, _, err = command("ask", picture, "?", "--model", other, own_model=True)
    assert code == 2 and err.count("\n") == 1 and re.search("do not fit", err), err


def test_what_nobody_expected_is_one_line_exit_code_1_and_a_hint(command, picture, monkeypatch):
    def broken(options, model):
        raise RuntimeError("boom\nmore")

    monkeypatch.setattr(verbs, "ask", broken)
    code, _, err = command("ask", picture, "?")
    assert code == 1 and err.count("\n") == 1
    assert re.search("RuntimeError: boom more .*--debug", err)
    with pytest.raises(RuntimeError, match="boom"):
        command("ask", picture, "?", "--debug")


def test_who_stops_listening_and_a_terminal_without_umlauts_are_no_error(monkeypatch):
    heard, said = os.pipe()
    os.close(heard)  # as `head` does
    with open(said, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        _tell("one")
        _tell("two")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "ascii"))
    _tell("Größe")
    _tell('"Größe"', r'"Gr\u00f6\u00dfe"')
    assert written.getvalue().decode() == 'Gr\\xf6\\xdfe\n"Gr\\u00f6\\u00dfe"\n'


def test_stopped_while_the_words_are_read_it_ends_quietly(monkeypatch, capsys):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_unimedvl.cli.command.parser", stopped)
    assert run(["ask"]) == 130 and capsys.readouterr().err == "unimedvl: stopped before anything was done.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_what_cannot_be_shown_is_said_without_a_traceback(monkeypatch, capsys):
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        _tell("one")
    monkeypatch.setattr(sys, "stdout", None)
    _tell("two")
    monkeypatch.undo()
    assert "what was done cannot be shown (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.ENAMETOOLONG])
def test_a_full_disk_and_the_like_are_no_faults_of_ours(command, picture, monkeypatch, number):
    def failing(options, model):
        raise OSError(number, os.strerror(number), "out/mask.nii.gz")

    monkeypatch.setattr(verbs, "ask", failing)
    code, _, err = command("ask", picture, "?")
    assert code == 2 and "not expected" not in err
    assert f"out/mask.nii.gz cannot be read or written ({os.strerror(number)}): make room, or choose" in err


def test_a_package_that_is_not_installed_is_named(command, picture, monkeypatch):
    def lacking(options, model):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy.ndimage")

    monkeypatch.setattr(verbs, "ask", lacking)
    code, _, err = command("ask", picture, "?")
    assert code == 2 and "needs scipy, which is not installed" in err and "not expected" not in err


def test_stopping_by_hand_is_exit_code_130(command, picture, monkeypatch):
    def stopped(options, model):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "ask", stopped)
    code, _, err = command("ask", picture, "?")
    assert code == 130 and "nothing half-written" in err
