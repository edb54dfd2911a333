# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate`: what is asked for reaches the benchmark."""

from __future__ import annotations

import os

import pytest

from monai_unimedvl import evaluation
from monai_unimedvl.evaluation import Report
from monai_unimedvl.evaluation.benchmarks import EDIT_STEPS


@pytest.fixture
def asked(monkeypatch):
    """The options that the benchmark got; it scores nothing."""
    seen = {}

    def evaluate(network, tokenizer, **options):
        seen.update(options)
        return Report([], [], {"limit": None, "seed": 0, "edit_steps": [1], "judge": {}})

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return seen


def test_the_test_sections_are_scored_in_the_steps_that_are_shipped(command, asked):
    assert command("evaluate", "--quiet", "--json")[0] == 0
    assert tuple(asked["sections"]) == evaluation.benchmarks.SECTIONS and asked["steps"] == EDIT_STEPS


def test_choices_can_be_made_on_val(command, asked):
    words = ("--sections", "val", "--steps", "3", "--tasks", "sr4", "--limit", "2")
    assert command("evaluate", *words, "--quiet", "--json")[0] == 0
    assert (asked["sections"], asked["steps"], asked["tasks"], asked["limit"]) == (["val"], 3, ["sr4"], 2)


@pytest.mark.parametrize("verb", ["evaluate", "demo"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(verb, command, asked, tmp_path, monkeypatch):
    def unwanted(*given, **options):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("monai_unimedvl.bundle.load", unwanted)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "shut").mkdir()
    (tmp_path / "page.html").mkdir()
    shut = str(tmp_path / "shut")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != shut)  # as root, a mode stops nobody
    for name in ("file", "file/below", "shut", "shut/below", *(["page.html"] if verb == "demo" else [])):
        code, _, error = command(verb, "--out", tmp_path / name)
        assert code == 2 and f"--out {tmp_path / name}" in error and error.count("\n") == 1, error
    assert (tmp_path / "file").read_text() == "kept" and not asked


def test_an_unknown_section_is_one_line(command, asked):
    code, _, error = command("evaluate", "--sections", "train")
    assert code == 2 and "invalid choice: 'train'" in error and not asked
