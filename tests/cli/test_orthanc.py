# SPDX-License-Identifier: Apache-2.0
"""A real archive, Orthanc, takes a generated series, SEG and report both ways, and gives them back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import torch
from archive import Orthanc, an_archive

from monai_unimedvl.cli import main
from monai_unimedvl.provenance import read_mark, read_report
from monai_unimedvl.transforms.read import read

pytestmark = pytest.mark.slow


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An empty one on free ports of loopback."""
    pytest.importorskip("pynetdicom", reason="the extra delivery is not installed")
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    with an_archive(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def results(command, series, tmp_path, painter) -> Path:
    """A generated series, a SEG and a structured report, filed under the patient of their source."""
    out = tmp_path / "results"
    dicom = ("--format", "dicom", "--keep-identity", "--quiet")
    assert command("edit", series, "Sharpen.", "--whole", *dicom, "--out", out / "series")[0] == 0
    task = ("--task", "tissue", "--whole")
    assert command("segment", series, *task, *dicom, "--out", out / "mask.dcm")[0] == 0
    assert command("report", series, "--max-words", "5", *dicom, "--out", out / "report.dcm")[0] == 0
    return out


def test_orthanc_takes_what_we_make_and_gives_it_back(orthanc, results, series, tmp_path, capsys):
    import highdicom

    queue = ("--queue", str(tmp_path / "queue"), "--quiet")
    assert main(["send", str(results), "--to", orthanc.ways[0], *queue]) == 1  # it is not running yet
    orthanc.start()
    for number, way in enumerate(orthanc.ways):
        words = [str(results), "--to", way] if number else []
        assert main(["send", *words, *queue]) == 0, capsys.readouterr()
        assert json.loads(orthanc.get("/statistics"))["CountStudies"] == 1
        files = orthanc.take(tmp_path / f"back{number}")
        assert len(files) == 6
        by_kind: dict[str, list[Path]] = {}
        for path in files:
            by_kind.setdefault(pydicom.dcmread(path).Modality, []).append(path)
            assert read_mark(path)["synthetic"] is True
        assert {kind: len(found) for kind, found in by_kind.items()} == {"MR": 4, "SEG": 1, "SR": 1}
        folder = tmp_path / f"series{number}"
        folder.mkdir()
        for path in by_kind["MR"]:
            shutil.copy(path, folder)
        back, made = read(folder), read(results / "series")
        assert torch.equal(back.as_tensor(), made.as_tensor()) and torch.equal(back.affine, made.affine)
        mask = highdicom.seg.segread(by_kind["SEG"][0])
        assert (mask.pixel_array == highdicom.seg.segread(results / "mask.dcm").pixel_array).all()
        source = pydicom.dcmread(series / "0.dcm")
        assert mask.StudyInstanceUID == source.StudyInstanceUID and mask.PatientID == source.PatientID
        assert read_report(by_kind["SR"][0]).findings == read_report(results / "report.dcm").findings
