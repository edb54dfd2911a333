# SPDX-License-Identifier: Apache-2.0
"""A large volume gives the records of a small one: its pictures are only made one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import block, nifti, series

from monai_unimedvl.data.ingest import large
from monai_unimedvl.data.record import Record
from monai_unimedvl.data.step import Tally, make


def ingest(tmp_path: Path, kind: str, **options: Any) -> list[dict[str, Any]]:
    """The records of a folder as JSON; nothing may be rejected."""
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "public": True}
    tally = Tally()
    items = list(make({"step": "ingest", "kind": kind, **given, **options})((), tally))
    assert items and not tally.rejects, items
    return [item.to_json() for item in items if isinstance(item, Record)]


def folder(tmp_path: Path, kind: str) -> None:
    """A volume of a kind, or two that belong together."""
    values = (block() * 100).astype(np.int16)
    if kind == "dicom":
        series(tmp_path / "in", 5)
    elif kind == "nifti":
        nifti(tmp_path / "in" / "a.nii.gz", values)
        nifti(tmp_path / "in" / "b.nii", block())
    elif kind == "pairs":
        nifti(tmp_path / "in" / "T1" / "a.nii.gz", values)
        nifti(tmp_path / "in" / "T2" / "a.nii.gz", values[::-1].copy())
    else:
        nifti(tmp_path / "in" / "images" / "a.nii.gz", values)
        nifti(tmp_path / "in" / "masks" / "a.nii.gz", (block() > block().mean()).astype(np.uint8))
        (tmp_path / "in" / "labels.json").write_text(json.dumps({"cyst": 1}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nifti", {"modality": "mri", "slices": 3}),
        ("nifti", {"modality": "ct", "slices": 3, "policy": "center", "plane": "coronal"}),
        ("nifti", {"modality": "mri", "policy": "all", "plane": "sagittal"}),
        ("nifti", {"modality": "mri", "slices": 500}),
        ("dicom", {"slices": 3}),
        ("dicom", {"slices": 40, "modality": "ct"}),
        ("pairs", {"modality": "mri", "slices": 3}),
        ("masks", {"modality": "mri", "slices": 2, "containing": "label"}),
    ],
)
def test_the_records_of_a_large_volume_are_those_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    folder(tmp_path, kind)
    small = ingest(tmp_path, kind, **options)
    cut: list[int] = []
    monkeypatch.setattr(large, "LARGE", 0)
    made = large.Cut.__getitem__
    monkeypatch.setattr(large.Cut, "__getitem__", lambda self, n: cut.append(n) or made(self, n))
    assert ingest(tmp_path, kind, **options) == small
    assert cut, "nothing was cut slice by slice"


def test_what_is_wrong_with_a_large_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 0)
    holed = block()
    holed[3, 3, 3] = np.nan
    for values, message in ((holed, "NaN or Inf"), (np.stack([block(), block()], 3), r"bad\.nii is 4-D")):
        nifti(tmp_path / "in" / "bad.nii", values)
        chain = make({"step": "ingest", "kind": "nifti", "path": str(tmp_path / "in"), "modality": "mri",
                      "root": str(tmp_path), "dataset": "d", "public": True, "policy": "all"})  # fmt: skip
        with pytest.raises(ValueError, match=message):
            list(chain.pictures(tmp_path / "in" / "bad.nii"))  # type: ignore[attr-defined]
