# SPDX-License-Identifier: Apache-2.0
"""How an output came about, and the mark made of it.

A mark is one JSON object: the facts, `content` (sha256 of the pixels or words, so that it outlives a change
of container) and `seal` (sha256 of the rest of the mark, so that an edit of the mark shows). It is no
signature: whoever wants to forge one can.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from monai_unimedvl import __version__
from monai_unimedvl.atomic import new_file, unwritable

SOFTWARE = f"monai_unimedvl {__version__}"
NOTICE = "Synthetic: made by a model, not by a scanner. Not for diagnosis."

Mark = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """How an output came about.

    Args:
        prompt: the words.
        seed: of the chance in it.
        weights: sha256 of the model's weights.
        task: the verb or preset.
        inputs: sha256 of each input file.
        slices: indexes of the slices or frames that were read.
        steps, text_guidance, image_guidance: of drawing; None for text.
        sources: the UIDs of the DICOM series that were read, hashed (`transforms.deidentify.hashed_uid`).
    """

    prompt: str
    seed: int
    weights: str
    task: str = ""
    inputs: Sequence[str] = ()
    slices: Sequence[int] = ()
    steps: int | None = None
    text_guidance: float | None = None
    image_guidance: float | None = None
    sources: Sequence[str] = ()

    def manifest(self) -> Mark:
        """The facts with versions and date, as JSON values; what is unknown is left out."""
        versions = {name: _version(name) for name in ("torch", "monai")}
        known = {key: value for key, value in asdict(self).items() if value not in (None, "", (), [])}
        return {
            "synthetic": True,
            "notice": NOTICE,
            "software": SOFTWARE,
            "versions": {"monai_unimedvl": __version__, "python": platform.python_version(), **versions},
            "created": _now().isoformat(timespec="seconds"),
            **known,
        }

    def id(self) -> str:
        """The id of the invisible mark: six hex digits of what decides the output, not of the hour."""
        decisive = json.dumps(asdict(self), sort_keys=True, default=list)
        return hashlib.sha256(decisive.encode()).hexdigest()[:6]


def _now() -> datetime:
    """The time; with SOURCE_DATE_EPOCH set that second, so that a request gives the same bytes again."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now(UTC)


def sealed(mark: Mark) -> Mark:
    """The mark with its seal, in place of an older one."""
    rest = {key: value for key, value in mark.items() if key != "seal"}
    return {**rest, "seal": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def of_array(values: np.ndarray) -> str:
    """sha256 of an array's numbers and shape; whole numbers hash alike in every integer type."""
    wide = values.astype("<i8") if values.dtype.kind in "biu" else values.astype(f"<f{values.dtype.itemsize}")
    start = hashlib.sha256(f"{wide.dtype.str} {values.shape}".encode())
    start.update(np.ascontiguousarray(wide).data)
    return start.hexdigest()


def of_text(text: str) -> str:
    """sha256 of words."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(source: str | Path) -> str:
    """Of a file's bytes; of a folder, of the sorted hashes of its files, so that no name matters."""
    source = Path(source)
    if source.is_dir():
        each = sorted(sha256(path) for path in source.iterdir() if path.is_file())
        return hashlib.sha256("\n".join(each).encode()).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a file or of a series folder lies."""
    return Path(f"{path}.json")


def to_json(content: Mark) -> bytes:
    """As manifests are written."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_marked(content: bytes, path: Path, mark: Mark) -> Path:
    """A file and its manifest, the manifest first: a picture without one never lies there."""
    output = hashlib.sha256(content).hexdigest()
    fresh = not path.exists()
    try:  # both lie on the disk before either is moved into place
        with new_file(path) as part, new_file(manifest_path(path)) as told:
            part.write_bytes(content)
            told.write_bytes(to_json({**mark, "output": output}))
    except OSError as error:
        if fresh:
            manifest_path(path).unlink(missing_ok=True)
        raise unwritable(path, error) from error
    return path


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
