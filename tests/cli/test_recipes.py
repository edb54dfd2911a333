# SPDX-License-Identifier: Apache-2.0
"""`unimedvl recipes`: settings in words, sheets of public and own scans, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from monai_unimedvl.cli import main
from monai_unimedvl.cli.recipes import CASES
from monai_unimedvl.transforms import modalities, recipe


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["recipes", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_recipe_is_told_with_its_settings(capsys) -> None:
    code, out, _ = run(capsys)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == modalities()
    code, out, _ = run(capsys, "--json")
    told = json.loads(out)["recipes"]
    assert told["ct"]["settings"]["window"] == "abdomen" and told["oct"]["about"]
    code, out, _ = run(capsys, "ct")
    assert code == 0 and "HU" in out and "Radiopaedia" in out and "subdural: {low: -15, high: 165}" in out


def test_a_sheet_shows_every_slice_with_its_place(capsys, scan, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "mri", "--scans", scan, scan, "--out", tmp_path / "sheets")
    sheet = Image.open(tmp_path / "sheets" / "mri.png")
    assert code == 0 and "mri.png" in out and [p.name for p in (tmp_path / "sheets").iterdir()] == ["mri.png"]
    pixels = np.asarray(sheet)
    assert sheet.width > 1200 and (pixels == 255).any()
    assert pixels[40:264, 8:232].std() > 10


def test_a_modality_without_public_scans_says_so(capsys, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "oct", "--out", tmp_path / "sheets")
    assert code == 0 and "oct: no scan here" in out and "--scans FILE" in out
    assert {case.modality for case in CASES} == set(modalities()) - {"oct", "endoscopy", "dermoscopy"}
    for case in CASES:
        recipe(case.modality, **case.settings)


def test_what_does_not_fit_is_one_line(capsys, tmp_path: Path, picture: Path) -> None:
    for words, said in (
        (["mr"], "did you mean 'mri'"),
        (["mri", "--scans", picture], "--scans came without --out"),
        (["--scans", picture, "--out", tmp_path], "--scans needs the one recipe"),
        (["mri", "--out", tmp_path / "a.png"], "a folder is expected"),
        (["mri", "--scans", tmp_path / "none.nii", "--out", tmp_path], "none.nii does not exist"),
    ):
        code, out, err = run(capsys, *words)
        assert code == 2 and said in err and err.count("\n") == 1 and not out
