# SPDX-License-Identifier: Apache-2.0
"""The command itself is killed while it sends, again and again: the archive still gets every instance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pydicom
import pytest
from delivery.conftest import instance

from monai_unimedvl.delivery.outbox import Outbox

COUNT = 40


@pytest.mark.slow
def test_a_killed_sender_loses_nothing(tmp_path, archive):
    for number in range(COUNT):
        (tmp_path / "made").mkdir(exist_ok=True)
        instance(number).save_as(tmp_path / "made" / f"{number}.dcm", enforce_file_format=True)

    def slow(number: int) -> int:
        time.sleep(0.05)
        return 0

    archive.answer = slow
    start = [sys.executable, "-m", "monai_unimedvl", "send", "--queue", str(tmp_path / "q"), "--json"]
    first = subprocess.Popen([*start, str(tmp_path / "made"), "--to", archive.to])
    kills = 0
    for goal in (0, 10, 25):  # killed while it fills the queue or begins, and twice while it sends
        runner = first if goal == 0 else subprocess.Popen(start)
        deadline = time.monotonic() + 120
        waiting = tmp_path / "q" / "waiting"
        while runner.poll() is None and time.monotonic() < deadline:
            begun = len(list(waiting.glob("*.dcm"))) > COUNT // 2 if waiting.is_dir() else False
            if (goal == 0 and begun) or (goal and len(archive.kept) > goal):
                os.kill(runner.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        assert runner.wait(60) in (0, -signal.SIGKILL)
        if goal == 0:  # it had not said that all were taken: the user gives the same command again
            for path in sorted((tmp_path / "made").iterdir()):
                Outbox(tmp_path / "q").add(path, archive.to)
    assert kills == 3
    assert subprocess.run(start, stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(archive.kept) == list(range(COUNT))
    for number, held in archive.kept.items():
        assert held == pydicom.dcmread(tmp_path / "made" / f"{number}.dcm")
    assert not Outbox(tmp_path / "q").waiting()
