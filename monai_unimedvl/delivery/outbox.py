# SPDX-License-Identifier: Apache-2.0
"""The queue on disk: what is put in stays there until an archive has said that it keeps it.

    waiting/ID.json + ID.dcm   to be sent; the .dcm is moved in last, so a pair is whole or not there
    refused/ID.json + ID.dcm   what the archive will not take as it is
    sent.jsonl                 receipts: when, where to, sha256

An instance is taken out after the receipt is on the disk, so a stop at any moment loses nothing; at worst it
is sent twice, which archives take as one, its UID being the same. ID is a hash: no name or UID is in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monai_unimedvl.atomic import new_file
from monai_unimedvl.delivery.destination import Destination, Trust, Verdict, destination, hushed
from monai_unimedvl.packages import needed

FIRST, LONGEST = 5.0, 3600.0  # seconds until the second try; at most, between tries
log = logging.getLogger(__name__)

Sender = Callable[[Destination, Sequence[Path], Trust], Iterator[Verdict]]


@dataclass(frozen=True)
class Entry:
    """One instance in the queue.

    Args:
        id: hash of destination and bytes.
        to: the archive, as text.
        sha256: of the file.
        added, due: times in UTC, ISO 8601.
        tries: so far.
        why: the last try failed; "" before it.
    """

    id: str
    to: str
    sha256: str
    added: str
    due: str
    tries: int = 0
    why: str = ""


@dataclass(frozen=True)
class Sent:
    """What a round did: numbers of instances."""

    sent: int = 0
    waiting: int = 0
    refused: int = 0


class Outbox:
    """A queue in a folder; several processes may add to it, and one at a time sends.

    Raises:
        ValueError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            for name in ("waiting", "refused"):
                (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ValueError(
                f"the queue {folder} cannot be made ({error.strerror}): choose another folder by --queue."
            ) from error

    def add(self, path: str | Path, to: str, unmarked: bool = False) -> Entry:
        """Take a copy of a file; it is on the disk before this returns, and adding it again changes nothing.

        Raises:
            ValueError: no such archive, a file that may not be sent (`check`), or that cannot be written.
        """
        destination(to)
        check(path, unmarked)
        try:
            content = Path(path).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            name = hashlib.sha256(f"{to} {digest}".encode()).hexdigest()[:24]
            now = _now().isoformat()
            entry = Entry(name, to, digest, now, now)
            if not self._payload("waiting", name).exists():
                self._save("waiting", entry)
                with new_file(self._payload("waiting", name), durable=True) as part:
                    part.write_bytes(content)
        except OSError as error:
            raise ValueError(
                f"{Path(path).name} cannot be put into the queue ({error.strerror}): nothing of it is sent."
            ) from error
        return entry

    def waiting(self) -> list[Entry]:
        """What is to be sent, oldest first."""
        return self._entries("waiting")

    def refused(self) -> list[Entry]:
        """What an archive will not take."""
        return self._entries("refused")

    def again(self) -> int:
        """Put what was refused back to be sent; returns how many."""
        refused = self.refused()
        for entry in refused:
            self._save("waiting", replace(entry, tries=0, due=_now().isoformat()))
            self._move(entry.id, "refused", "waiting")
        return len(refused)

    def due_in(self) -> float | None:
        """Seconds until something is due, 0 if it is now; None when nothing waits."""
        times = [datetime.fromisoformat(entry.due) for entry in self.waiting()]
        return max(0.0, (min(times) - _now()).total_seconds()) if times else None

    def flush(
        self, *, trust: Trust | None = None, all_now: bool = False, sender: Sender | None = None
    ) -> Sent:
        """One round: try what is due, and remember what came of each.

        Args:
            all_now: also what is not due yet.
            sender: instead of C-STORE and STOW-RS.

        Raises:
            ValueError: another process is sending from this queue.
        """
        filelock = needed("filelock", "The queue", "delivery")
        lock = filelock.FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                f"another process is sending from {self.folder}: wait for it, or use another --queue."
            ) from error
        try:
            now = _now().isoformat()
            by_archive: dict[str, list[Entry]] = {}
            for entry in self.waiting():
                if all_now or entry.due <= now:
                    by_archive.setdefault(entry.to, []).append(entry)
            sent = 0
            for to, entries in by_archive.items():
                sent += self._send(destination(to), entries, trust or Trust(), sender)
            return Sent(sent, len(self.waiting()), len(self.refused()))
        finally:
            lock.release()

    def _send(self, to: Destination, entries: Sequence[Entry], trust: Trust, sender: Sender | None) -> int:
        """How many of one archive's entries it keeps now."""
        paths = [self._payload("waiting", entry.id) for entry in entries]
        counts = {"sent": 0, "wait": 0, "refused": 0}
        verdicts = (sender or _by_scheme(to))(to, paths, trust)
        for verdict, entry in zip(verdicts, entries, strict=True):
            counts[verdict.state] += 1
            if verdict.state == "sent":
                self._receipt(entry)
                self._payload("waiting", entry.id).unlink()
                self._state("waiting", entry.id).unlink(missing_ok=True)
            else:
                pause = timedelta(seconds=min(LONGEST, FIRST * 2.0**entry.tries))
                later = replace(
                    entry, tries=entry.tries + 1, why=verdict.why, due=(_now() + pause).isoformat()
                )
                self._save("waiting", later)
                if verdict.state == "refused":
                    self._save("refused", later)
                    self._move(entry.id, "waiting", "refused")
        log.info("%s: %d sent, %d wait, %d refused", to.host, *counts.values())
        return counts["sent"]

    def _entries(self, where: str) -> list[Entry]:
        found = []
        for path in (self.folder / where).glob("*.dcm"):
            state = self._state(where, path.stem)
            try:
                found.append(Entry(**json.loads(state.read_text("utf8"))))
            except FileNotFoundError:  # taken out at this moment
                continue
        return sorted(found, key=lambda entry: (entry.added, entry.id))

    def _receipt(self, entry: Entry) -> None:
        line = {"when": _now().isoformat(timespec="seconds"), "to": entry.to, "sha256": entry.sha256}
        stream = os.open(self.folder / "sent.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(stream, json.dumps(line).encode() + b"\n")
            os.fsync(stream)
        finally:
            os.close(stream)

    def _save(self, where: str, entry: Entry) -> None:
        with new_file(self._state(where, entry.id), durable=True) as part:
            part.write_text(json.dumps(entry.__dict__), "utf8")

    def _move(self, name: str, start: str, end: str) -> None:
        """The file moves first: where it lies, there the entry is."""
        os.replace(self._payload(start, name), self._payload(end, name))
        self._state(start, name).unlink(missing_ok=True)

    def _payload(self, where: str, name: str) -> Path:
        return self.folder / where / f"{name}.dcm"

    def _state(self, where: str, name: str) -> Path:
        return self.folder / where / f"{name}.json"


def instances(paths: Iterable[str | Path]) -> tuple[list[Path], int]:
    """The DICOM files that paths and folders name, sorted, and how many other files lie in the folders.

    Raises:
        ValueError: a path that does not exist or is no DICOM file, or a folder without one.
    """
    from pydicom.misc import is_dicom

    found: list[Path] = []
    others = 0
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file())
            kept = [file for file in inside if is_dicom(file)]
            if not kept:
                raise ValueError(f"folder {path} holds no DICOM file: write results with --format dicom.")
            found += kept
            others += len(inside) - len(kept)
        elif not path.is_file():
            raise ValueError(
                f"{path} does not exist, but a DICOM file or folder is expected: check the path."
            )
        elif not is_dicom(path):
            raise ValueError(f"{path.name} is no DICOM file: write results with --format dicom.")
        else:
            found.append(path)
    return found, others


def check(path: str | Path, unmarked: bool = False) -> None:
    """Whether a file may be sent: a whole DICOM instance, and marked as synthetic.

    Args:
        unmarked: what bears no mark may be sent, too.

    Raises:
        ValueError: it may not.
    """
    import pydicom
    from pydicom.pixels.utils import get_expected_length

    name = Path(path).name
    with hushed():
        try:
            instance = pydicom.dcmread(path)
            for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                assert instance.get(keyword), keyword
            assert instance.file_meta.MediaStorageSOPClassUID
            if "PixelData" in instance and not instance.file_meta.TransferSyntaxUID.is_compressed:
                assert len(instance.PixelData) >= get_expected_length(instance), "the end is missing"
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror}): nothing of it is sent.") from error
        except Exception as error:  # a parser of damaged bytes fails in many ways
            raise ValueError(
                f"{name} is no whole DICOM instance ({type(error).__name__}): write it again."
            ) from error
    if not unmarked and instance.get("SyntheticData") != "YES":
        raise ValueError(
            f"{name} is not marked as synthetic (0008,001C), and only what a model made is sent: send it by"
            " the archive's own tools, or add --unmarked."
        )


def _by_scheme(to: Destination) -> Sender:
    if to.web:
        from monai_unimedvl.delivery.web import stow

        return stow
    from monai_unimedvl.delivery.dimse import c_store

    return c_store


def _now() -> datetime:
    return datetime.now(UTC)
