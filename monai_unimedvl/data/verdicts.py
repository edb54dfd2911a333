# SPDX-License-Identifier: Apache-2.0
"""Decisions on a whole corpus that lies in parts: notes in, a file of verdicts for every part out.

Of a `Whole` only its notes are read. Any other `Stream` reads the records themselves, without their images,
in one process.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_unimedvl.data.jobs import RECORDS, TALLY, decided, part_name, read_lines, step_of
from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Stream, Tally
from monai_unimedvl.data.whole import Whole


def decide(work: Path, number: int, place: int, options: str, parts: int) -> None:
    """Write the verdicts of one decision after a pass, unless they are there.

    Args:
        number: of the pass. place: of the decision among those that follow it.
        parts: how many the pass has.
    """
    final = work / f"verdicts-{number}-{place}"
    if final.is_dir():
        return
    step = step_of(options)
    assert isinstance(step, Stream)
    tally = Tally()
    rows = _judge(step, work, number, place, parts) if isinstance(step, Whole) else \
        _pass_through(step, work, number, place, parts)  # fmt: skip
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=work))
    try:
        for part in range(parts):
            with (aside / f"{part_name(part)}.jsonl").open("w", encoding="utf8") as stream:
                for alive in _alive(work, number, place, part):
                    row = next(rows) if alive else None
                    if alive:
                        out = bool(row and "code" in row)
                        tally.end(not out)
                        tally.records += not out
                        tally.rejects += out
                        tally.reasons.update([row["code"]] if row and out else [])
                    stream.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
        assert next(rows, "end") == "end", f"step {step.name} gave more verdicts than there are records"
        (aside / TALLY).write_text(json.dumps({"step": step.name, **tally.to_json()}))
        os.chmod(aside, 0o755)  # a temporary folder is for its owner only
        os.rename(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _judge(step: Whole, work: Path, number: int, place: int, parts: int) -> Iterator[dict[str, Any] | None]:
    """The verdicts of a `Whole` on what is left, from notes alone."""

    def notes() -> Iterator[Any]:
        for part in range(parts):
            lines = read_lines(work / f"pass-{number}" / part_name(part) / f"notes-{place}.jsonl")
            for alive, note in zip(_alive(work, number, place, part), lines, strict=True):
                if alive:
                    yield note

    for verdict in step.decide(notes()):
        said = verdict.to_json()
        yield {"step": step.name, **said} if said else None


def _pass_through(
    step: Stream, work: Path, number: int, place: int, parts: int
) -> Iterator[dict[str, Any] | None]:
    """What a stream makes of the records; a line holds the whole record where it was changed."""
    waiting: deque[Record] = deque()

    def records() -> Iterator[Record]:
        for part in range(parts):
            for item in decided(work, number, part, place):
                if isinstance(item, Record):
                    waiting.append(item)
                    yield item

    for item in step(records()):
        record = waiting.popleft()
        if isinstance(item, Reject):
            yield {"step": item.step or step.name, "code": item.code, "reason": item.reason}
        else:
            yield None if item == record else {"step": step.name, "record": item.to_json()}


def _alive(work: Path, number: int, place: int, part: int) -> Iterator[bool]:
    """For each record of a part: whether no earlier decision after this pass has left it out."""
    said = [read_lines(work / f"verdicts-{number}-{n}" / f"{part_name(part)}.jsonl") for n in range(place)]
    if not said:
        with (work / f"pass-{number}" / part_name(part) / RECORDS).open("rb") as stream:
            yield from (True for _ in stream)
        return
    for rows in zip(*said, strict=True):
        yield not any(row and "code" in row for row in rows)
