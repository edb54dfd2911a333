# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all: written aside, then moved into place.

What is on its way is a hidden neighbour whose name ends in `.part`; only a kill leaves one behind.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
_NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEM")
MACHINE = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}  # what no file is at fault for


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file; words as UTF-8, folders are made.

    Raises:
        ValueError: it cannot be written there.
    """
    try:
        with new_file(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise unwritable(Path(path), error) from error


@contextmanager
def new_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Where to write a file, which becomes `path` when the block ends well; folders are made.

    Args:
        durable: it outlives a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = aside(path)
    try:
        yield part
        if durable:
            _sync(part)
        os.replace(part, path)
        if durable:
            _sync(path.parent)  # the new name is on the disk only once its folder is
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends well.

    Raises:
        ValueError: `path` is a file or a folder that holds something, or cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already, but a new folder is expected: choose another name.")
    part = aside(path)
    try:
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            path.rmdir()
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def into_folder(folder: str | Path, *, last: Sequence[str], stale: Sequence[str] = ()) -> Iterator[Path]:
    """Where to write files, which are moved into a folder that may hold others when the block ends well.

    Args:
        last: files without which nobody reads the folder: their older ones go first and they come last, so
            that a folder that a kill caught halfway is not taken for a whole one.
        stale: patterns of files of an earlier time that would be read beside the new ones: they go.

    Raises:
        ValueError: `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder: choose another name.")
    folder.mkdir(parents=True, exist_ok=True)
    part = aside(folder / "files")
    try:
        part.mkdir()
        yield part
        new = sorted(path.name for path in part.iterdir())
        for name in last:
            (folder / name).unlink(missing_ok=True)
        for old in [path for pattern in stale for path in folder.glob(pattern)]:
            if old.name not in new:
                old.unlink()
        for name in [*(name for name in new if name not in last), *last]:
            os.replace(part / name, folder / name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def lock(stream: int) -> None:
    """Wait until no other process holds an open file; it is let go when it is closed. Nothing on Windows."""
    with suppress(ImportError, OSError):  # some network drives have no locks
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX)


def aside(path: Path) -> Path:
    """A name of its own beside a path, for what is on its way there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def machine_fault(error: BaseException | None) -> OSError | None:
    """What of an error, or of those behind it, says that a disk is full or a limit of the system reached."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in MACHINE:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def unwritable(path: Path, error: OSError) -> ValueError:
    """The sentence for what the system would not write."""
    return ValueError(f"{path} cannot be written ({error.strerror or error}): choose another place.")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows does that itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
