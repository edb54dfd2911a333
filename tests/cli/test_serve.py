# SPDX-License-Identifier: Apache-2.0
"""`unimedvl serve`: what it refuses to start with, and that it starts, answers and stops."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

REFUSED = [
    (["--host", "0.0.0.0"], "no key is set"),
    (["--host", "::"], "no key is set"),
    (["--api-key-file", "KEY"], "a key has 16 or more of ASCII"),
    (["--api-key-file", "none.txt"], "cannot be read"),
    (["--port", "70000"], "cannot be listened at"),
    (["--port", "TAKEN"], "choose another --port"),
    (["--tls-cert", "cert.pem"], "belong together"),
    (["--samples", "none"], "is no folder"),
    (["--model", "none"], "neither a folder"),
]


@pytest.mark.parametrize("words, said", REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_would_be_unsafe_or_cannot_work_is_refused(command, tmp_path, monkeypatch, words, said):
    monkeypatch.delenv("UNIMEDVL_API_KEY", raising=False)
    (tmp_path / "key.txt").write_text("short\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"KEY": str(tmp_path / "key.txt"), "TAKEN": str(taken.getsockname()[1])}
        port = [] if "--port" in words else ["--port", "0"]
        code, out, err = command("serve", *(names.get(word, word) for word in words), *port, own_model=True)
    assert code == 2 and out == ""
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_it_starts_answers_with_its_key_and_stops_when_told(model: Path, tmp_path: Path):
    (tmp_path / "key.txt").write_text("correct-horse-battery\n")
    words = ["serve", "--model", str(model), "--port", "0", "--api-key-file", str(tmp_path / "key.txt")]
    process = subprocess.Popen(
        [sys.executable, "-m", "monai_unimedvl", *words], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "serving" in line)
        (url,) = re.findall(r"at (http://127\.0\.0\.1:\d+) ", said)
        headers = {"Authorization": "Bearer correct-horse-battery"}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        (served,) = httpx.get(f"{url}/v1/models", headers=headers).json()["data"]
        assert served["id"] == model.name and len(served["weights"]) == 64
        assert "Open an image" in httpx.get(url, follow_redirects=True).text
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in rest and "horse" not in rest
