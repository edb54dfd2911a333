# SPDX-License-Identifier: Apache-2.0
"""A real MONAI Label server on loopback, behind a key: how the tests of the Label app start and ask it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel

KEY = "0123456789abcdef0123456789abcdef"
NAME = "Doe^Jane"  # a file is named after a patient, who must not be named in a log
SECONDS = 300  # to start; MONAI Label's imports take 12 s on a quiet core


@dataclass
class Server:
    """An app that is served, and how it is asked."""

    app: Path
    studies: str
    options: tuple[str, ...] = ()
    key: str = KEY
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.app.parent / f"{self.app.name}.log").read_text("utf8")

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["--app", str(self.app), "--studies", self.studies, "--port", str(self.port), *self.options]
        if self.key:
            (self.app.parent / "key").write_text(self.key)
            words += ["--key-file", str(self.app.parent / "key")]
        with (self.app.parent / f"{self.app.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "monai_unimedvl.label", *words], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment}, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                assert self.get("/info/").status_code == 200
                return
            except OSError:
                assert self.process.poll() is None, self.log
                time.sleep(0.2)
        raise AssertionError(self.log)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def kill(self) -> None:
        """As a power cut does it: no goodbye."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        import requests

        headers = {"X-API-Key": self.key} if self.key else {}
        return requests.request(method, self.url + path, headers=headers, timeout=SECONDS, **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.ask("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        answer = self.ask("POST", path, json=body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def infer(self, model: str, image: str, output: str | None = None, **settings: Any) -> Any:
        """The answer of a task: its JSON, or with output="image" the response."""
        where = {"image": image, **({"output": output} if output else {})}
        answer = self.ask("POST", f"/infer/{model}", params=where, data={"params": json.dumps(settings)})
        if output == "image":
            assert answer.status_code == 200, answer.text
            return answer
        return answer.json()

    def volume(self, model: str, image: str, **settings: Any) -> nibabel.Nifti1Image:
        """What a task draws, as a NIfTI."""
        content = self.infer(model, image, "image", **settings).content
        folder = Path(tempfile.mkdtemp(dir=self.app.parent))
        (folder / "made.nii.gz").write_bytes(content)
        return nibabel.load(folder / "made.nii.gz")  # type: ignore[return-value]

    def label(self, image: str, content: bytes, name: str, tag: str = "final", **params: Any) -> None:
        answer = self.ask(
            "PUT", "/datastore/label", params={"image": image, "tag": tag},
            files={"label": (name, io.BytesIO(content))}, data={"params": json.dumps(params)},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
