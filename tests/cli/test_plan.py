# SPDX-License-Identifier: Apache-2.0
"""`unimedvl plan`: a table for people, values for --json, one line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_unimedvl.cli import main
from monai_unimedvl.training import preflight
from monai_unimedvl.training.tally import Step


@pytest.fixture(autouse=True)
def stepless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step itself is counted in tests/training."""
    monkeypatch.setattr(preflight, "_step", lambda setup: Step(10**8, 10**8, 10**6, 10**11))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_table_names_parts_machines_and_speed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    for word in (
        "understanding",
        "optimiser",
        "most at one time",
        "packs are",
        "updates a day",
        "checkpoint",
    ):
        assert word in out
    assert "1 x 24 GB: fits as it is" in out


def test_a_config_file_and_options_are_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("precision: 32-true\nkeep: 1\nstage: 2\nmax_tokens: 500\n", "utf8")
    code, out, _ = run(capsys, str(config), "--json", "--no-machines", "--flops", "1e11")
    values = json.loads(out)
    assert code == 0 and values["stage"] == "instruction" and values["learning"]["vision"] == 0
    assert values["kept"] == 2 * values["checkpoint"] and values["updates_a_day"] == pytest.approx(86_400)
    code, out, _ = run(capsys, str(config), "--json", "--no-machines", "--adapters", "generation")
    few = json.loads(out)["learning"]
    assert few["generation"] > 0 and sum(few.values()) == few["generation"]


def test_what_does_not_fit_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("precison: 32-true\n", "utf8")
    code, _, err = run(capsys, str(config))
    assert code == 2 and "has the key 'precison'" in err and "did you mean 'precision'?" in err
    code, _, err = run(capsys, "--quantise", "nf4")
    assert code == 2 and "Quantised weights cannot learn" in err
    code, _, err = run(capsys, "--max-tokens", "20")
    assert code == 2 and "No sample fits max_tokens=20 of stage" in err
