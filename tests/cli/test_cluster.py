# SPDX-License-Identifier: Apache-2.0
"""A list on Ray: two workers write what one process writes, to the bit, and a killed one loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FIXED = {"SOURCE_DATE_EPOCH": "1767225600", "OMP_NUM_THREADS": "1"}


def words(model: Path, folder: Path, out: str) -> list[str]:
    command = [sys.executable, "-m", "monai_unimedvl", "edit", "Sharpen.", "--steps", "2", "--quiet"]
    listed = ["--input-list", str(folder / "list.jsonl"), "--out", str(folder / out), "--model", str(model)]
    return [*command, *listed]


def make_list(folder: Path, count: int) -> None:
    lines = [{"input": "stain.png", "seed": n, "out": f"{n}.png"} for n in range(count)]
    lines.insert(1, {"input": "absent.png"})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def workers_of(pid: int) -> list[int]:
    """Ray's processes that hold a model, below a process."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def below(child: int) -> bool:
        while child in parents and child != pid:
            child = parents[child]
        return child == pid

    return [child for child, title in titles.items() if "MapWorker" in title and below(child)]


def test_two_workers_give_the_same_files_and_a_killed_one_loses_nothing(model, picture, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    make_list(tmp_path, 12)
    environment = {**os.environ, **FIXED}
    alone = subprocess.run(words(model, tmp_path, "alone"), env=environment, capture_output=True, text=True)
    assert alone.returncode == 1 and "12 of 13 done" in alone.stdout, alone.stderr
    killed, results = 0, tmp_path / "many" / "results.jsonl"
    deadline = time.monotonic() + 900  # a minute on an idle machine; five were not enough on a laden one
    with subprocess.Popen(
        [*words(model, tmp_path, "many"), "--engine", "ray", "--workers", "2"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as many:  # fmt: skip
        try:
            while many.poll() is None and time.monotonic() < deadline:
                if not killed and results.exists() and (found := workers_of(many.pid)):
                    os.kill(found[0], signal.SIGKILL)
                    killed = found[0]
                time.sleep(0.02)
            out, err = many.communicate(timeout=60)
        finally:
            many.terminate()
    assert killed, "no worker was found to kill"
    assert many.returncode == 1 and "12 of 13 done" in out, err
    assert content(tmp_path / "many") == content(tmp_path / "alone")
    again = subprocess.run(words(model, tmp_path, "many"), env=environment, capture_output=True, text=True)
    assert "12 of 13 done (12 were there already)" in again.stdout
    assert content(tmp_path / "many") == content(tmp_path / "alone")
