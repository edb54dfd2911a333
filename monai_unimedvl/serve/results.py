# SPDX-License-Identifier: Apache-2.0
"""What the panel has made: marked files in a folder that goes with the server, each under a random id."""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monai_unimedvl.provenance import manifest_path
from monai_unimedvl.serve.limits import Refused

MEDIA = {".png": "image/png", ".gz": "application/gzip", ".json": "application/json"}


@dataclass(frozen=True)
class Result:
    """A file that was made, and what it is called when it is downloaded."""

    id: str
    path: Path
    name: str

    @property
    def media(self) -> str:
        """Its media type."""
        return MEDIA[self.path.suffix]

    @property
    def manifest(self) -> Path | None:
        """The manifest beside it; words are their own."""
        beside = manifest_path(self.path)
        return beside if beside.is_file() else None


class Results:
    """The last ones, as many as are kept.

    Args:
        kept: how many; the oldest goes first.
    """

    def __init__(self, kept: int = 200) -> None:
        self.kept = kept
        self._folder = tempfile.TemporaryDirectory(prefix="unimedvl-results-")
        self._there: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, write: Callable[[Path], object]) -> Result:
        """Have a file written and keep it.

        Args:
            name: such as "mask.nii.gz".
            write: gets the path, and writes a marked file and its manifest there.
        """
        id_ = secrets.token_urlsafe(12)
        path = Path(self._folder.name) / id_ / name
        write(path)
        result = Result(id_, path, f"unimedvl-{name}")
        with self._lock:
            self._there[id_] = result
            old = [self._there.popitem(last=False)[1] for _ in range(len(self._there) - self.kept)]
        for one in old:
            for file in one.path.parent.iterdir():
                file.unlink()
            one.path.parent.rmdir()
        return result

    def get(self, id_: str) -> Result:
        """A result by its id, which is looked up and never used as a path.

        Raises:
            Refused: there is none (any more).
        """
        with self._lock:
            if id_ not in self._there:
                raise Refused("This result is not kept any more: make it again.", status=404, code="gone")
            return self._there[id_]

    def close(self) -> None:
        """Delete all."""
        self._folder.cleanup()
