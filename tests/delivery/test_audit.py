# SPDX-License-Identifier: Apache-2.0
"""An audit has whole lines: of many processes at once, after a kill, and on a full disk."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from monai_unimedvl.delivery.audit import Audit


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", "Dr. Ü")
    audit.add("ask", "ab")
    with audit.path.open("a") as stream:
        stream.write('{"when": "2026')  # a power cut
    audit.add("edit", "cd")
    first, torn, second = audit.path.read_text("utf8").splitlines()
    assert json.loads(first)["what"] == "ask" and torn == '{"when": "2026'
    assert (json.loads(second)["what"], json.loads(second)["who"]) == ("edit", "Dr. Ü")


def test_a_full_disk_is_said_and_leaves_the_lines_that_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(tmp_path / "audit.jsonl", "a service")
    audit.add("ask", "ab")
    before, plain = audit.path.read_bytes(), os.write
    with monkeypatch.context() as during:
        during.setattr(os, "write", lambda stream, content: plain(stream, content[:20]))
        with pytest.raises(ValueError, match=r"No space left.*expected room for a line: make some"):
            audit.add("edit", "cd")
    assert audit.path.read_bytes() == before
    audit.add("edit", "cd")
    assert [line["what"] for line in lines(audit.path)] == ["ask", "edit"]


def test_many_at_once_write_whole_lines(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Audit(tmp_path / "a.jsonl", "x" * n).add(str(n), "ab"), range(100)))
    assert sorted(int(line["what"]) for line in lines(tmp_path / "a.jsonl")) == list(range(100))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"the audit .*pipe cannot be written \(it is no file\)"):
        Audit(tmp_path / "pipe")
