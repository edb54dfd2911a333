# SPDX-License-Identifier: Apache-2.0
"""A real archive, Orthanc, takes a generated series, SEG and report both ways, and gives them back."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import torch

from monai_unimedvl.cli import main
from monai_unimedvl.provenance import read_mark, read_report
from monai_unimedvl.transforms.read import read

pytestmark = pytest.mark.slow
WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BINARY = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


@dataclass
class Orthanc:
    """The server's ports, and how it is started and stopped."""

    folder: Path
    dicom: int
    http: int
    process: subprocess.Popen | None = None

    @property
    def ways(self) -> tuple[str, str]:
        return f"dicom://ORTHANC@127.0.0.1:{self.dicom}", f"http://127.0.0.1:{self.http}/dicom-web"

    def start(self) -> None:
        config = {
            "Name": "test", "StorageDirectory": str(self.folder / "store"), "DicomAet": "ORTHANC",
            "HttpPort": self.http, "DicomPort": self.dicom, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False, "DicomCheckCalledAet": True, "Plugins": [str(WEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        (self.folder / "orthanc.json").write_text(json.dumps(config))
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [BINARY, str(self.folder / "orthanc.json")], stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.get("/system")
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return answer.read()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def take(self, folder: Path) -> list[Path]:
        """All instances, out of the archive into files; the archive is empty then."""
        folder.mkdir(parents=True)
        for name in json.loads(self.get("/instances")):
            (folder / f"{name}.dcm").write_bytes(self.get(f"/instances/{name}/file"))
        for name in json.loads(self.get("/patients")):
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}/patients/{name}", method="DELETE")
            urllib.request.urlopen(request, timeout=10).close()
        return sorted(folder.iterdir())


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An empty one on free ports of loopback."""
    if BINARY is None or not WEB.is_file():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    pytest.importorskip("pynetdicom", reason="the extra delivery is not installed")
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    folder = tmp_path / "orthanc"
    folder.mkdir()
    server = Orthanc(folder, *ports)
    yield server
    server.stop()


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
