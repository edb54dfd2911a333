# SPDX-License-Identifier: Apache-2.0
"""Sheets of what a network draws while it learns, in MONAI's evaluator too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.engines import SupervisedEvaluator
from PIL import Image

from monai_unimedvl import provenance
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.sheets import Case, Sheets


def test_an_evaluator_leaves_a_sheet_after_each_run(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["Sharpen. Which plane is this? axial"] * 20, 300)
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=1).train()
    network.grids = {"view": [16, 16, 8], "canvas": [16, 16, 8]}
    shown, truth = torch.full((3, 16, 16), 0.5), torch.ones(3, 16, 16)
    items = [
        {"turns": [Turn("user", [shown, "Which plane is this?"]), Turn("assistant", ["axial"])]},
        {"turns": [Turn("user", [shown, "Sharpen."]), Turn("assistant", [truth])]},
        Case(["Sharpen."]),
        Case(["axial"]),
    ]
    sheets = Sheets(tokenizer, items, tmp_path, count=2, steps=1)
    assert len(sheets.cases) == 2  # the question has nothing to draw, the last is one too many
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[0], network=network, decollate=False,
        iteration_update=lambda engine, batch: {}, val_handlers=[sheets],
    )  # fmt: skip
    evaluator.run()
    evaluator.run()
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "validation-000000.png", "validation-000001.png",
    ]  # fmt: skip
    pixels = np.asarray(Image.open(tmp_path / "validation-000001.png"))
    assert pixels.shape == (32, 48, 3)
    assert (abs(pixels[:16, :16].astype(int) - 128) <= 1).all() and (pixels[:16, 32:] == 255).all()
    assert (pixels[16:, :16] == 0).all() and (pixels[16:, 32:] == 0).all()  # drawn from words, no truth
    assert provenance.verify(tmp_path / "validation-000000.png")["task"] == "training samples"
    assert (tmp_path / "rows.txt").read_text().splitlines()[1:] == ["1. Sharpen.", "2. Sharpen."]
    assert network.training


def test_cases_become_squares_for_a_network_of_squares(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["Sharpen."] * 20, 300)
    wide, truth = torch.full((3, 8, 16), 0.5), torch.ones(3, 8, 16)
    sheets = Sheets(tokenizer, [Case([wide, "Sharpen."], truth), Case(["Sharpen."])], tmp_path, square=True)
    ((turn,), seen), (_, none) = ((case.prompt, case.truth) for case in sheets.cases)
    assert isinstance(turn, Turn) and turn.parts[0].shape == (3, 16, 16) and seen is not None  # type: ignore
    assert torch.equal(seen[:, 4:12], truth) and not seen[:, :4].any() and none is None


def test_without_anything_to_draw_there_is_no_sheet(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["axial"] * 20, 300)
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    assert Sheets(tokenizer, [], tmp_path).write(network, 0) is None and not list(tmp_path.iterdir())
