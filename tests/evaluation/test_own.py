# SPDX-License-Identifier: Apache-2.0
"""Scores on one's own data: each kind by its metrics, against a network whose answers are played."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from monai_unimedvl.evaluation import own
from monai_unimedvl.evaluation.own import score_own
from monai_unimedvl.sequence import Turn
from monai_unimedvl.transforms.masks import Legend

LEGEND = {"a": (255, 0, 0), "b": (0, 0, 255)}
MASK = torch.zeros(16, 16, dtype=torch.uint8)
MASK[:8] = 1


class Network:
    timestep_shift = 2.0


def reading(item: dict) -> dict:
    truth: str | Tensor = "axial" if item["kind"] == "answer" else torch.full((3, 16, 16), 0.5)
    if item["kind"] == "mask":
        truth = Legend(LEGEND).coloured(MASK)
    return {
        **item,
        "turns": [Turn("user", ["?"]), Turn("assistant", [truth])],
        "mask": MASK,
        "legend": LEGEND,
    }


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers "Axial plane.", drawings of the mask at half the size."""
    monkeypatch.setattr(own, "TextInferer", lambda *_, **__: lambda batch, network: ["Axial plane."])
    drawn = Legend(LEGEND).coloured(MASK[::2, ::2])
    monkeypatch.setattr(own, "ImageInferer", lambda *_, **__: lambda batch, network: [drawn])


def test_answers_masks_and_pairs_have_their_own_metrics(played: None, tmp_path: Path) -> None:
    items = [{"kind": kind, "section": "val"} for kind in ("answer", "mask", "pair", "words")]
    report = score_own(Network(), None, items, reading, out=tmp_path / "scores")
    found = {(row.task, row.metric): row.value for row in report.rows}
    assert found["answer", "exact match"] == 0 and found["answer", "token F1"] == pytest.approx(2 / 3)
    assert found["mask", "Dice"] == 1.0
    assert found["pair", "PSNR"] == pytest.approx(-10 * torch.tensor(0.25).log10().item(), abs=0.3)
    assert {task for task, _ in found} == {"answer", "mask", "pair"}
    assert "| mask | val | all | Dice | 1 |" in (tmp_path / "scores" / "table.md").read_text("utf8")


def test_slices_of_a_patient_are_no_independent_witnesses(
    played: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = iter((["axial"] * 20 + ["coronal"] * 20) * 2)  # two patients, one right and one wrong in all
    monkeypatch.setattr(own, "TextInferer", lambda *_, **__: lambda batch, network: [next(answers)])
    items = [
        {"kind": "answer", "section": "val", "image": f"Doe_{n // 20}.nii.gz", "slice": (n % 20, 20)}
        for n in range(40)
    ]
    report = score_own(Network(), None, items, reading, out=tmp_path / "scores")
    row = next(row for row in report.rows if row.metric == "exact match")
    assert (row.value, row.low, row.high) == (0.5, 0.0, 1.0)
    saved = b"".join(path.read_bytes() for path in (tmp_path / "scores").iterdir())
    assert b"where none is named): 2." in saved and b"Doe" not in saved
    one = score_own(Network(), None, [{**item, "patient": "x"} for item in items], reading)
    assert "of which there is one: they say nothing of others" in one.about["notes"]


def test_nothing_to_score_is_said(played: None) -> None:
    with pytest.raises(ValueError, match="There is nothing to score in 1 items, expected questions"):
        score_own(Network(), None, [{"kind": "words", "section": "val"}], reading)
