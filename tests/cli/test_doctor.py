# SPDX-License-Identifier: Apache-2.0
"""`unimedvl doctor` and `unimedvl convert` as somebody types them, and `--quantize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from monai_unimedvl.cli import doctor

Command = Callable[..., tuple[int, str, str]]


def test_doctor_says_what_a_bundle_is_and_its_exit_code_whether_it_loads(
    command: Command, model: Path, tmp_path: Path
) -> None:
    code, out, _ = command("doctor", model, own_model=True)
    assert code == 0 and out.splitlines()[-1] == "loads for answering and drawing"
    (tmp_path / "notes.md").write_text("")
    code, out, _ = command("doctor", tmp_path, "--json", own_model=True)
    values = json.loads(out)
    assert code == 2 and not values["ok"] and values["findings"][0]["level"] == "error"
    code, _, err = command("doctor", tmp_path / "gone", own_model=True)
    assert code == 2 and "There is no file or folder" in err and "Traceback" not in err


def test_doctor_without_a_path_looks_at_the_installation(command: Command) -> None:
    code, out, _ = command("doctor", own_model=True)
    assert "packed kernels: int8" in out and (code == 0) == ("nothing is wrong" in out)


def test_convert_writes_a_new_folder_and_says_its_files(
    command: Command, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "half"
    code, out, _ = command(
        "convert", model / "models", target, "--dtype", "bfloat16", "--max-shard", "50KB", "--quiet",
        own_model=True,
    )  # fmt: skip
    assert code == 0 and "model-00001-of-" in out and (target / "tokenizer.json").is_file()
    code, _, err = command("convert", model / "models", target, own_model=True)
    assert code == 2 and "is not empty" in err
    code, _, err = command("convert", model / "models", tmp_path / "b", "--layout", "bagel", own_model=True)
    assert code == 2 and "The reference has no place for prediction='image'" in err
    code, _, err = command("convert", model, tmp_path / "b", "--max-shard", "much", own_model=True)
    assert code == 2 and "a size such as 2GB" in err


@pytest.mark.parametrize("verb", ["ask", "draw"])
def test_quantize_is_taken_by_the_verbs(verb: str, command: Command, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 60, 30)).save(tmp_path / "x.png")
    words = {
        "ask": [
            tmp_path / "x.png",
            "Which plane is this?",
            "--modality",
            "mri",
            "--out",
            tmp_path / "o.json",
        ],
        "draw": ["A head.", "--steps", "1", "--out", tmp_path / "o.png"],
    }[verb]
    code, _, err = command(verb, *words, "--quantize", "int8", "--quiet")
    assert code == 0 and len(list(tmp_path.glob("o.*"))) >= 1, err


def test_prune_takes_a_share_and_refuses_what_is_none(command: Command, tmp_path: Path) -> None:
    for n in range(2):
        Image.new("RGB", (64, 64), (90, 60, 30)).save(tmp_path / f"{n}.png")
    words = [tmp_path / "0.png", tmp_path / "1.png", "Which plane is this?", "--modality", "mri", "--quiet"]
    code, whole, err = command("ask", *words, "--prune", "0.4")
    assert code == 0 and whole.strip(), err
    code, _, err = command("ask", *words, "--prune", "55")
    assert code == 2 and "a share between 0 and 1 is expected, as 0.55" in err


def test_a_torchvision_that_does_not_fit_is_named(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brokenvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "TROUBLE", "brokenvision")
    code, out, _ = command("doctor", own_model=True)
    assert code == 2 and "brokenvision cannot be imported (RuntimeError), and transformers breaks" in out
