# SPDX-License-Identifier: Apache-2.0
"""Who asked the model, when, and hashes of what went in and came out: one JSON line per request.

It holds no file name, no words of prompt or answer and nothing of a header: the hashes find the files again.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from monai_unimedvl import __version__


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
        stream = self._open()
        try:
            os.write(stream, json.dumps(line, ensure_ascii=False).encode() + b"\n")  # one write: never mixed
            os.fsync(stream)
        finally:
            os.close(stream)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _account() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an account without a name, as in some containers
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
