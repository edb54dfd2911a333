# SPDX-License-Identifier: Apache-2.0
"""`unimedvl send`: results to an archive by C-STORE or STOW-RS, through a queue that loses nothing."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from monai_unimedvl.cli.command import Result, note
from monai_unimedvl.delivery.destination import Trust, destination
from monai_unimedvl.delivery.outbox import Outbox, check, instances
from monai_unimedvl.packages import needed

LONGEST = 60.0  # seconds between looks at the queue


def send(options: Namespace) -> Result:
    """Put files into the queue, and try to send all that waits there."""
    if options.out:
        raise ValueError("send writes no file: leave --out away.")
    if options.files and not options.to:
        raise ValueError(
            "files came without --to, but an archive is expected: --to dicom://ARCHIVE@host:104."
        )
    if options.to and not options.files:
        raise ValueError("--to came without files: name DICOM files or folders, or leave it out to go on.")
    if options.to:  # before anything is copied
        web = destination(options.to).web
        needed("dicomweb_client" if web else "pynetdicom", "STOW-RS" if web else "C-STORE", "delivery")
    outbox = Outbox(options.queue)
    trust = Trust(
        *(Path(name) if name else None for name in (options.ca, options.certificate, options.token_file))
    )
    found, others = instances(options.files)
    for path in found:  # all or none: an error must not leave half of a series in the queue
        check(path, options.unmarked)
    for path in found:
        outbox.add(path, _address(options), options.unmarked)
    if others:
        note(options, f"left out {others} files that are no DICOM")
    if options.again:
        note(options, f"{outbox.again()} that were refused are tried again")
    if options.list:
        return _listed(outbox)
    sent = outbox.flush(trust=trust, all_now=True)
    total, tries = sent.sent, 1
    while sent.waiting and (options.watch or tries < options.tries):
        pause = min(LONGEST, max(0.5, outbox.due_in() or 0.0))
        note(options, f"{sent.waiting} wait ({_reasons(outbox)}); next try in {pause:.0f} s")
        time.sleep(pause)
        sent = outbox.flush(trust=trust)
        total, tries = total + sent.sent, tries + 1
    lines = [f"{total} sent, {sent.waiting} wait, {sent.refused} refused"]
    if sent.waiting:
        lines.append(f"  waiting: {_reasons(outbox)}; go on with: unimedvl send --queue {options.queue}")
    if sent.refused:
        reasons = ", ".join(f"{n} x {why}" for why, n in Counter(e.why for e in outbox.refused()).items())
        lines.append(
            f"  refused: {reasons}; once that is mended: unimedvl send --queue {options.queue} --again"
        )
    left: dict[str, Any] = {"waiting": sent.waiting, "refused": sent.refused}
    return lines, {"sent": total, **left, "failures": [name for name, count in left.items() if count]}


def _address(options: Namespace) -> str:
    """The archive's text with our own title in it, so that the queue knows it after a restart."""
    if options.calling and options.to.startswith("dicom"):
        return f"{options.to}{'&' if '?' in options.to else '?'}calling={options.calling}"
    return options.to


def _listed(outbox: Outbox) -> Result:
    lines, values = [], {}
    for name, entries in (("waiting", outbox.waiting()), ("refused", outbox.refused())):
        lines.append(f"{len(entries)} {name}")
        lines += [f"  {e.id}  {e.to}  {e.tries} tries  {e.why or 'not tried yet'}" for e in entries]
        values[name] = [vars(entry) for entry in entries]
    return lines, values


def _reasons(outbox: Outbox) -> str:
    counted = Counter(entry.why or "not tried yet" for entry in outbox.waiting())
    return ", ".join(f"{count} x {why}" for why, count in counted.items())
