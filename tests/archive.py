# SPDX-License-Identifier: Apache-2.0
"""A real archive, Debian's Orthanc, on free ports of loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@contextmanager
def an_archive(folder: Path) -> Iterator[Orthanc]:
    """An empty one, not started; skips the test where it is not installed."""
    if BINARY is None or not WEB.is_file():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    folder.mkdir()
    server = Orthanc(folder, *ports)
    try:
        yield server
    finally:
        server.stop()
