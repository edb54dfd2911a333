# SPDX-License-Identifier: Apache-2.0
"""What lies far from every colour of the legend is said to be uncertain, in one slice and in a volume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from cli.conftest import Command

from monai_unimedvl.cli import verbs

COLOURS = [(240, 240, 240), (0, 0, 0), (0, 255, 0), (0, 200, 40)]  # two labels, and greens of no tissue


class Painter:
    """Draws four bars, of which the last two are of no colour of the legend."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __call__(self, batch: Sequence[object], network: object) -> list[torch.Tensor]:
        bars = torch.tensor(COLOURS).T.div(255)[:, None].repeat_interleave(16, 2)  # (3, 1, 64)
        return [bars.expand(3, 64, 64) for _ in batch]


@pytest.mark.parametrize("which", [["--slice", "5"], ["--whole"]])
def test_what_is_far_from_every_colour_is_uncertain(
    command: Command, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: list[str]
) -> None:
    monkeypatch.setattr(verbs, "ImageInferer", Painter)
    out = tmp_path / "mask.nii.gz"
    words = ("segment", scan, "--task", "tissue", "--modality", "mri", *which, "--out", out, "--json")
    code, said, err = command(*words)
    assert code == 0, err
    told = json.loads(said)
    assert list(told["legend"]) == ["grey matter", "white matter", "CSF", "uncertain"]
    labels = np.asarray(nibabel.load(out).dataobj)
    assert set(np.unique(labels)) == {0, 2, 4} and told["pixels"]["uncertain"] == (labels == 4).sum() > 50
