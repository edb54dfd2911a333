# SPDX-License-Identifier: Apache-2.0
"""Instances with a patient's name and known UIDs, and archives on loopback that do as they are told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

NAME = "Doe^Jane"
ROOT = "1.2.826.0.1.3680043.8.498.7"  # of all UIDs here


def instance(number: int, kind: str = MRImageStorage) -> pydicom.Dataset:
    """A synthetic MR slice."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = kind
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = f"{ROOT}.3.{number}"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
    header.Modality, header.PatientName, header.PatientID = "MR", NAME, "47QX11"
    header.SyntheticData = "YES"
    header.Rows = header.Columns = 16
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation, header.InstanceNumber = 15, 0, number
    header.PixelData = np.full((16, 16), number, np.uint16).tobytes()
    return header


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four instances in a folder `made`, beside a file of another kind."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    for number in range(4):
        instance(number).save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return [folder / f"{number}.dcm" for number in range(4)]


class Archive:
    """What an archive has received, and what it answers: a status by the instance's number."""

    def __init__(self) -> None:
        self.kept: dict[int, pydicom.Dataset] = {}
        self.calls = 0
        self.answer: Callable[[int], int] = lambda number: 0
        self.to = ""
        self.requests: list[dict[str, str]] = []

    def take(self, held: pydicom.Dataset) -> int:
        """The status of one instance, which is kept where it says so."""
        self.calls += 1
        status = self.answer(int(held.InstanceNumber))
        if status == 0 or status >> 12 == 0xB:
            self.kept[int(held.InstanceNumber)] = held
        return status


@pytest.fixture
def archive() -> Iterator[Archive]:
    """An archive that takes MR slices by C-STORE."""
    pynetdicom = pytest.importorskip("pynetdicom", reason="the extra delivery is not installed")
    there = Archive()

    def store(event: pynetdicom.evt.Event) -> int:
        held = event.dataset
        held.file_meta = event.file_meta
        return there.take(held)

    entity = pynetdicom.AE("ARCHIVE")
    entity.require_called_aet = True
    entity.add_supported_context(MRImageStorage)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, store)]
    )
    there.to = f"dicom://ARCHIVE@127.0.0.1:{server.socket.getsockname()[1]}"
    yield there
    server.shutdown()


@pytest.fixture
def web() -> Iterator[Archive]:
    """An archive that takes anything by STOW-RS; a status from 0x10000 up is that HTTP code for all."""
    pytest.importorskip("dicomweb_client", reason="the extra delivery is not installed")
    there = Archive()

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            there.requests.append(dict(self.headers))
            body = self._body()
            boundary = self.headers["Content-Type"].split('boundary="')[1].split('"')[0].encode()
            parts = [part.split(b"\r\n\r\n", 1)[1][:-2] for part in body.split(b"--" + boundary)[1:-1]]
            said: dict[str, list[dict]] = {"00081199": [], "00081198": []}
            http = 200
            for part in parts:
                held = pydicom.dcmread(BytesIO(part), force=True)
                status = there.take(held)
                http = status - 0x10000 if status >= 0x10000 else http
                item = {"00081155": {"vr": "UI", "Value": [str(held.SOPInstanceUID)]}}
                if status == 0:
                    said["00081199"].append(item)
                else:
                    said["00081198"].append({**item, "00081197": {"vr": "US", "Value": [status & 0xFFFF]}})
            full = {tag: {"vr": "SQ", "Value": items} for tag, items in said.items() if items}
            content = json.dumps(full).encode() if http == 200 else b""
            self.send_response(http)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole

        def log_message(self, *words: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    there.to = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    yield there
    server.shutdown()
    server.server_close()
