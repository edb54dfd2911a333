# SPDX-License-Identifier: Apache-2.0
"""Who asked the model, when, and hashes of what went in and came out: one JSON line per request.

It holds no file name, no words of prompt or answer and nothing of a header: the hashes find the files again.
"""

from __future__ import annotations

import errno
import getpass
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from monai_unimedvl import __version__
from monai_unimedvl.atomic import lock


class Audit:
    """A file that lines are added to, by any number of processes at once.

    Args:
        path: made where it is absent, with its folders.
        who: a person or service; by default the account that runs this.

    Raises:
        ValueError: it cannot be written: then nothing is asked.
    """

    def __init__(self, path: str | Path, who: str | None = None) -> None:
        self.path, self.who = Path(path), who or _account()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
        except OSError as error:
            raise ValueError(
                f"the audit {self.path} cannot be written ({error.strerror}), and nothing is asked without"
                " it: choose another file."
            ) from error

    def add(
        self,
        what: str,
        model: str,
        inputs: Iterable[str] = (),
        outputs: Iterable[str] = (),
        failed: str | None = None,
    ) -> None:
        """Add a request; the line is on the disk before this returns.

        Args:
            what: the verb.
            model: sha256 of the weights.
            inputs, outputs: sha256 of each file.
            failed: the kind of error, without its words.

        Raises:
            ValueError: there is no room for the line; the file is what it was.
        """
        line = {
            "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": self.who,
            "host": platform.node(),
            "software": f"monai_unimedvl {__version__}",
            "what": what,
            "model": model,
            "inputs": list(inputs),
            "outputs": list(outputs),
            "outcome": f"failed: {failed}" if failed else "done",
        }
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        stream = self._open()
        try:
            lock(stream)
            size = os.lseek(stream, 0, os.SEEK_END)
            if size and _last(stream, size) != b"\n":
                content = b"\n" + content  # a kill has torn the line before
            try:
                if os.write(stream, content) < len(content):  # one write: never mixed
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(stream)
            except OSError as error:
                os.ftruncate(stream, size)
                raise ValueError(
                    f"the audit {self.path} cannot be written ({error.strerror}), expected room for a line: "
                    "make some, and ask again."
                ) from error
        finally:
            os.close(stream)

    def _open(self) -> int:
        if self.path.exists() and not self.path.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


def _last(stream: int, size: int) -> bytes:
    os.lseek(stream, size - 1, os.SEEK_SET)
    return os.read(stream, 1)


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
