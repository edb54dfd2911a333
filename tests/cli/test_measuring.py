# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate` on this machine and by workers: the same predictions, and errors in one line."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from atlas_items import items
from PIL import Image

from monai_unimedvl import bundle, evaluation
from monai_unimedvl.cli import measuring
from monai_unimedvl.evaluation import AtlasBenchmark, Drawing, Report
from monai_unimedvl.evaluation.encoders import ImageText
from monai_unimedvl.evaluation.predictions import read_predictions


@pytest.fixture
def benchmark():
    data = {section: items(section) for section in ("train", "test")}
    return AtlasBenchmark(datasets=data, sections=("test",), tasks=["vqa", "sr4"], progress=False)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--workers", "2"], "--workers 2 came, expected a number from 1 on with --engine ray"),
        (["--workers", "0", "--engine", "ray"], "expected a number from 1 on"),
        (["--engine", "ray", "--device", "cuda:1"], "Ray hands the devices out|no CUDA device|cuda:1"),
        (["--tasks", "seg-heart"], "got task 'seg-heart', expected some of vqa"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(command, words, message):
    code, _, error = command("evaluate", *words, "--quiet")
    assert code == 2 and re.search(message, error) and error.count("\n") == 1


def test_a_file_is_no_folder_for_a_report(command, tmp_path):
    (tmp_path / "scores").touch()
    code, _, error = command("evaluate", "--out", tmp_path / "scores", "--quiet")
    assert code == 2 and "is a file, expected a folder for the report: name another" in error


def test_the_command_writes_page_cards_tables_and_predictions(command, benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation.benchmarks, "AtlasBenchmark", lambda *a, **options: benchmark)
    monkeypatch.setattr(evaluation.benchmarks, "WORDS", {"vqa": 2, "caption": 2})
    code, out, _ = command("evaluate", "--out", tmp_path / "run", "--limit", "2", "--quiet")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert code == 0 and names >= {
        "index.html", "model_card.md", "mi_claim_gen.md", "slices.csv", "table.md", "table.csv", "table.tex",
        "report.json", "predictions.parquet", "predictions.jsonl", "images.safetensors",
    }  # fmt: skip
    last = out.strip().splitlines()[-1]
    assert all(name in last for name in names - {"index.html.json"})


def test_what_is_left_out_for_want_of_a_package_is_said_once(command, monkeypatch, tmp_path, caplog):
    prediction = {
        "id": "sr4/a/0", "task": "sr4", "section": "test", "setting": "1 step",
        "scores": {"PSNR": 21.0}, "baselines": {}, "ceiling": {},
    }  # fmt: skip
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed

    def evaluate(network, tokenizer, *, out, **options):
        made = Report([], [prediction], {"benchmark": "atlas", "seed": 0})
        made.save(out)
        return made

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    code, out, error = command("evaluate", "--out", tmp_path / "run")
    assert code == 0 and (out + error + caplog.text).count("needs pyarrow") == 1


@pytest.fixture
def drawn(tmp_path):
    """A prediction file of two drawings, and the same with other scores."""
    for name in ("a", "b", "truth"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels + (name == "b")).save(tmp_path / f"{name}.png")
    for file, name in (("one", "a"), ("two", "b")):
        lines = [
            {"id": f"{n}", "answer": "", "task": "sr4", "drawn": f"{name}.png", "truth_image": "truth.png"}
            for n in range(3)
        ]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_drawings_are_scored_kept_and_tested_against_others(command, drawn):
    for name in ("one", "two"):
        code, out, error = command(
            "evaluate", "--predictions", drawn / f"{name}.jsonl", "--pictures", drawn, "--foreground",
            "--out", drawn / f"{name}.parquet",
        )  # fmt: skip
        assert code == 0, error
        assert "| sr4 | test | all | PSNR | 3 |" in out and "PSNR, foreground" in out and "0 resized" in out
    code, out, _ = command(
        "evaluate", "--predictions", drawn / "one.parquet", "--against", drawn / "two.parquet"
    )
    assert code == 0 and "| sr4 | test | PSNR | 3 |" in out and "sign flips, exact" in out
    assert "Difference: predictions less against" in out
    code, out, _ = command(
        "evaluate", "--predictions", drawn / "one.parquet", "--pictures", drawn, "--where", "id=1",
        "--out", drawn / "few.parquet",
    )  # fmt: skip
    assert code == 0 and "| sr4 | test | all | PSNR | 1 |" in out
    assert len(read_predictions(drawn / "few.parquet")) == 1


def test_drawings_are_held_against_their_words(command, drawn, monkeypatch):
    rows = [json.loads(line) for line in (drawn / "one.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"task": "text-to-image", "prompt": "Axial T1 MRI."}
    (drawn / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    blank = ImageText("pair", lambda x: x.mean((2, 3)), lambda texts: torch.ones(len(texts), 3))
    monkeypatch.setattr(evaluation.encoders, "clip", lambda folder: blank)
    words = ("--pictures", drawn, "--image-text", "clip=folder")
    code, out, error = command("evaluate", "--predictions", drawn / "words.jsonl", *words)
    assert code == 0 and "| text-to-image | test | all | image-text cosine | 3 |" in out, error
    code, _, error = command("evaluate", "--predictions", drawn / "one.jsonl", *words)
    assert code == 2 and "row 1 (id 0) has no words in prompt" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--pictures", "."], "add --predictions FILE"),
        (["--against", "two.jsonl"], "add --predictions FILE"),
        (["--predictions", "one.jsonl", "--upstream"], "--upstream scores drawings: add --predictions"),
        (["--predictions", "one.jsonl", "--limit", "3"], "--predictions asks no model: leave --engine"),
        (["--predictions", "one.jsonl", "--pictures", ".", "--out", "x.csv"], "ends in .parquet: rename it"),
        (["--predictions", "one.jsonl", "--pictures", "gone"], "one.jsonl row 1 .id 0., drawn: a.png is not"),
        (["--predictions", "one.jsonl", "--pictures", ".", "--legend", "a.png"], "a.png is no legend"),
        (
            ["--predictions", "one.jsonl", "--pictures", ".", "--encoder", "vgg=x"],
            "'vgg=x', expected KIND=PATH",
        ),
        (
            ["--predictions", "one.jsonl", "--pictures", ".", "--encoder", "inception=x.pt"],
            "x.pt is not there",
        ),
        (["--predictions", "one.jsonl", "--image-text", "clip=x"], "--image-text scores drawings: add"),
        (
            ["--predictions", "one.jsonl", "--pictures", ".", "--image-text", "blip=x"],
            "--image-text is 'blip=x', expected KIND=PATH with KIND of clip, biomedclip",
        ),
        (
            ["--predictions", "one.jsonl", "--pictures", ".", "--image-text", "clip=x"],
            "x has no weights here, and nothing is downloaded unasked",
        ),
    ],
)
def test_drawings_that_cannot_be_scored_are_one_line(command, drawn, monkeypatch, words, message):
    monkeypatch.chdir(drawn)
    code, _, error = command("evaluate", *words)
    assert code == 2 and re.search(message, error) and error.count("\n") == 1


@pytest.mark.slow
def test_two_workers_of_ray_make_the_same_predictions(benchmark, model, monkeypatch):
    pytest.importorskip("ray", reason="--engine ray needs it")
    monkeypatch.setattr(evaluation.benchmarks, "WORDS", {"vqa": 3, "caption": 3})
    network, tokenizer = bundle.load(str(model))
    settings = {"drawing": Drawing(1, 1.0), "steps": (2, 1), "batch": 1, "progress": False}
    here = benchmark.run(network, tokenizer, **settings)
    options = Namespace(device="cpu", workers=2, model=str(model))
    there = benchmark.run(network, tokenizer, engine=measuring.on_ray(options), **settings)
    assert there.rows == here.rows and str(there.predictions) == str(here.predictions)
    assert all(torch.equal(there.images[name], image) for name, image in here.images.items())


def test_an_engine_that_is_asked_nothing_starts_nothing():
    pytest.importorskip("ray", reason="--engine ray needs it")
    engine = measuring.on_ray(Namespace(device="cpu", workers=2, model="none"))
    assert list(engine([], lambda name: pytest.fail("built"))) == []
