# SPDX-License-Identifier: Apache-2.0
"""Public benchmarks asked of the shipped nano model, on tiny copies of their files."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")
from layouts import bci, icg, lay, omni, png, segmentation, slake  # noqa: E402

from monai_unimedvl.bundle import load  # noqa: E402
from monai_unimedvl.cli.command import main  # noqa: E402
from monai_unimedvl.cli.public import NAMES  # noqa: E402
from monai_unimedvl.evaluation.asking import ask  # noqa: E402
from monai_unimedvl.evaluation.predictions import read_predictions  # noqa: E402
from monai_unimedvl.evaluation.public import ask_benchmark  # noqa: E402
from monai_unimedvl.evaluation.readers import BENCHMARKS, read_benchmark  # noqa: E402


@pytest.fixture(scope="module")
def nano():
    return load("unimedvl_nano")


def large(folder, kind="png"):
    """Pictures that SSIM has a window for, in the place of all small ones."""
    for path in folder.rglob(f"*.{kind}"):
        lay(path, png(90, (32, 16), "L" if "masks" in str(path) or "reg" in path.name else "RGB"))


def test_questions_are_asked_with_the_suffix_of_a_protocol_and_in_the_order_of_the_items(tmp_path, nano):
    slake(tmp_path)
    benchmark = read_benchmark("slake", tmp_path, items=3)
    found = ask_benchmark(benchmark, *nano, out=tmp_path / "out", batch=2, progress=False)
    assert [row.id for row in found.rows] == ["0", "1", "2"]
    assert found.rows[0].prompt == "<image>Is it?\nAnswer yes or no, or with one of the words asked about."
    assert found.rows[1].prompt.endswith("只用“是”或“否”或所问的词回答。")
    assert all(row.stop_reason and row.tokens for row in found.rows)
    saved = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert saved.rows == found.rows and saved.about["items"] == 3 and len(saved.about["weights"]) == 64
    bare = ask_benchmark(benchmark, *nano, out=tmp_path / "other", protocol="vila-m3", progress=False)
    assert bare.rows[0].prompt == "<image>Is it?"


def test_a_run_that_was_killed_goes_on_and_asks_no_item_twice(tmp_path, nano):
    omni(tmp_path)
    benchmark = read_benchmark("omnimedvqa", tmp_path, items=42)
    asked: list[str] = []

    def dies(names, build):
        for name in names:
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(name)
            yield name, ask(*nano, build(name))

    def lives(names, build):
        for name in names:
            asked.append(name)
            yield name, ask(*nano, build(name))

    settings = {"limit": 4, "batch": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        ask_benchmark(benchmark, *nano, out=tmp_path / "out", engine=dies, **settings)
    found = ask_benchmark(benchmark, *nano, out=tmp_path / "out", engine=lives, **settings)
    assert sorted(asked) == [f"words/{n:06d}" for n in range(4)] and len(found) == 4
    assert found.rows == ask_benchmark(benchmark, *nano, out=tmp_path / "again", **settings).rows
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["predictions.parquet"]


def test_images_are_drawn_beside_their_truth(tmp_path, nano):
    bci(tmp_path)
    large(tmp_path)
    (row,) = ask_benchmark(
        read_benchmark("bci", tmp_path, items=1), *nano, out=tmp_path / "out", progress=False
    ).rows
    drawn, truth = (np.load(tmp_path / "out" / name) for name in (row.drawn, row.truth_image))
    assert drawn.shape == truth.shape == (3, 16, 32) and row.answer == ""
    assert "synthetic" in (tmp_path / "out/drawn/SYNTHETIC.txt").read_text()


def test_an_item_with_a_text_and_a_target_is_asked_for_both(tmp_path, nano):
    icg(tmp_path)
    large(tmp_path)
    (row,) = ask_benchmark(
        read_benchmark("icg-cxr", tmp_path, items=1), *nano, out=tmp_path / "out", progress=False
    ).rows
    assert row.stop_reason and row.drawn and row.patient == "10000032"


def test_masks_have_the_colours_of_their_legend_and_known_values_only(tmp_path):
    segmentation(tmp_path)
    (item,) = read_benchmark("segmentation", tmp_path, items=1).items
    assert item.true_image().unique().tolist() == pytest.approx(
        sorted(channel / 255 for channel in set(item.legend["tumour"]))
    )
    lay(tmp_path / "BUSI/masks/1.png", png(7, mode="L"))
    with pytest.raises(ValueError, match="1.png holds value 7, expected 0 and 255: mend the mask"):
        item.true_image()


def test_the_command_knows_every_benchmark():
    assert NAMES == tuple(BENCHMARKS)


def test_a_benchmark_is_asked_and_counted_by_one_command(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    slake(data)
    command = ["evaluate", "--benchmark", "slake", "--data", str(data), "--out", str(out), "--quiet"]
    assert main(command) == 2
    assert "slake test has 3 items, expected the 2,094 that are published" in capsys.readouterr().err
    assert main([*command, "--partial", "--limit", "2"]) == 0
    told = capsys.readouterr().out
    assert "slake test: 3 items, 2,094 published" in told and "asked 2 of them: --limit 2, seed 0" in told
    assert "| strict-v1 1 |" in told and f"wrote {out}: index.html, " in told
    saved = read_predictions(out / "predictions.parquet")
    assert len(saved) == 2 and all(0 <= row.scores["strict-v1 1"] <= 1 for row in saved.rows)
    names = {path.name for path in out.iterdir()}
    assert names >= {"table.md", "table.csv", "table.tex", "slices.csv", "model_card.md", "mi_claim_gen.md"}
    page = (out / "index.html").read_text("utf8")
    assert (
        "limited to 2 items (slake test: 3 items, 2,094 published)" in page
        and "By every protocol" in page
        and "held-out slab" not in page
    )
    assert "Not the whole benchmark: slake test: 3 items, 2,094 published." in page


def test_masks_are_scored_by_one_command(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    segmentation(data)
    large(data)
    lay(data / "BUSI/masks/1.png", png(255, (32, 16), "L"))
    command = ["evaluate", "--benchmark", "segmentation", "--data", str(data), "--out", str(out), "--quiet"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["metric"] for row in rows} >= {"Dice"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--benchmark", "slake"], "add --data FOLDER --out FOLDER"),
        (["--data", "x"], "add --benchmark NAME"),
        (
            ["--benchmark", "slak", "--data", ".", "--out", "x"],
            "benchmark is 'slak', expected one of vqa-rad",
        ),
        (
            ["--benchmark", "slake", "--data", "none", "--out", "x"],
            "none is no folder, expected that of slake",
        ),
    ],
)
def test_what_does_not_fit_is_said(words, message, capsys):
    assert main(["evaluate", *words]) == 2
    assert message in capsys.readouterr().err
