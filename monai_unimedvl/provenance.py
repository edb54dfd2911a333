# SPDX-License-Identifier: Apache-2.0
"""What the model makes is marked as synthetic: in the file itself, and in a manifest beside it.

PNG: text chunks. NIfTI: the header's description and an extension. Beside each file NAME lies NAME.json with
prompt, seed, steps, guidance, versions, and sha256 of weights, inputs and output. Neither holds a path, a
file name or anything of an input's header, so no patient identifier comes along; what the user writes into
the prompt is kept as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from monai_unimedvl import __version__

SOFTWARE = f"monai_unimedvl {__version__}"
NOTICE = "Synthetic: made by a model, not by a scanner. Not for diagnosis."
VOLUMES = (".nii", ".nii.gz")
COMMENT = 6  # code of a NIfTI extension that holds text


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

    def manifest(self) -> dict[str, Any]:
        """The facts with versions and date, as JSON values; what is unknown is left out."""
        versions = {name: _version(name) for name in ("torch", "monai")}
        known = {key: value for key, value in asdict(self).items() if value not in (None, "", (), [])}
        return {
            "synthetic": True,
            "notice": NOTICE,
            "software": SOFTWARE,
            "versions": {"monai_unimedvl": __version__, "python": platform.python_version(), **versions},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **known,
        }


def save_image(image: Tensor, path: str | Path, facts: Facts) -> Path:
    """Write a picture as a marked PNG and its manifest; returns the path.

    Args:
        image: (3, H, W) in [0, 1]; or (H, W) uint8, a map of labels, kept as it is.

    Raises:
        ValueError: the path does not end in .png, or cannot be written.
    """
    path = _ending(path, (".png",), "a picture")
    stream = io.BytesIO()
    to_picture(image).save(stream, "PNG", pnginfo=png_mark(facts))
    return _save(stream.getvalue(), path, facts)


def save_volume(volume: Tensor, affine: np.ndarray | Tensor, path: str | Path, facts: Facts) -> Path:
    """Write a volume as a marked NIfTI and its manifest; returns the path.

    Args:
        volume: (X, Y, Z), written in its own type.
        affine: (4, 4) from voxels to RAS mm.

    Raises:
        ValueError: the path does not end in .nii or .nii.gz, or cannot be written.
    """
    path = _ending(path, VOLUMES, "a volume")
    if volume.ndim != 3:
        raise ValueError(f"save_volume got shape {tuple(volume.shape)}, expected (X, Y, Z): pass one volume.")
    file = nibabel.Nifti1Image(volume.detach().cpu().numpy(), np.asarray(affine, dtype=np.float64))
    file.header["descrip"] = f"SYNTHETIC, {SOFTWARE}".encode()[:79]
    text = json.dumps(facts.manifest(), ensure_ascii=True).encode()
    file.header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, text))
    content = file.to_bytes()
    return _save(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content, path, facts)


def save_text(text: str, path: str | Path, facts: Facts) -> Path:
    """Write words as a JSON file: the manifest with `text` in it; returns the path."""
    path = _ending(path, (".json",), "words")
    write(path, _json({**facts.manifest(), "text": text}))
    return path


def save_page(html: str, path: str | Path, facts: Facts) -> Path:
    """Write an HTML page and its manifest; returns the path. Its pictures are marked by who wrote it."""
    return _save(html.encode(), _ending(path, (".html",), "a page"), facts)


def png_mark(facts: Facts) -> PngImagePlugin.PngInfo:
    """The text chunks of a PNG."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in facts.manifest().items():
        if isinstance(value, bool):
            chunks.add_text(key.capitalize(), str(value).lower())
        elif isinstance(value, str | int | float):
            chunks.add_itxt(key.capitalize(), str(value))
        else:
            chunks.add_itxt(key.capitalize(), json.dumps(value))
    return chunks


def read_mark(path: str | Path) -> dict[str, Any] | None:
    """The mark inside a PNG or NIfTI, or None where there is none.

    Raises:
        ValueError: no such file, or a file of another kind.
    """
    path = _ending(path, (".png", *VOLUMES), "a marked file")
    if not path.is_file():
        raise ValueError(f"{path} does not exist, but a file is expected: check the path.")
    try:
        if path.suffix == ".png":
            with Image.open(path) as file:
                file.load()  # chunks may follow the pixels
                mark = {key.lower(): value for key, value in getattr(file, "text", {}).items()}
            return mark if mark.get("synthetic") == "true" else None
        for extension in nibabel.load(path).header.extensions:  # type: ignore[attr-defined]
            if extension.get_code() == COMMENT and b'"synthetic"' in extension.content:
                return json.loads(extension.content.rstrip(b"\0"))
        return None
    except (
        UnidentifiedImageError,
        nibabel.filebasedimages.ImageFileError,
        OSError,
        SyntaxError,
        EOFError,
    ) as error:
        raise ValueError(f"{path.name} cannot be read ({_first_line(error)}): copy it again.") from error


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest beside a file, after checking that it belongs to these very bytes.

    Raises:
        ValueError: no mark, no manifest, or the file was changed after it was made.
    """
    path = Path(path)
    if read_mark(path) is None:
        raise ValueError(
            f"{path.name} has no mark of {SOFTWARE.split()[0]}: it was not made, or was stripped."
        )
    beside = manifest_path(path)
    if not beside.is_file():
        raise ValueError(
            f"{path.name} is marked as synthetic, but {beside.name} is missing: keep them together."
        )
    manifest = json.loads(beside.read_text("utf8"))
    if manifest.get("output") != sha256(path):
        raise ValueError(
            f"{path.name} was changed after it was made: its sha256 is not that of {beside.name}."
        )
    return manifest


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of a file lies."""
    return Path(f"{path}.json")


def sha256(source: str | Path) -> str:
    """Of a file's bytes; of a folder, of the sorted hashes of its files, so that no name matters."""
    source = Path(source)
    if source.is_dir():
        each = sorted(sha256(path) for path in source.iterdir() if path.is_file())
        return hashlib.sha256("\n".join(each).encode()).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(path: str | Path, content: bytes) -> None:
    """The whole file or nothing: written aside, then moved into place; folders are made.

    Raises:
        ValueError: it cannot be written there.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path} cannot be written ({reason}): choose another place with --out.") from error
    finally:
        aside.unlink(missing_ok=True) if aside.parent.is_dir() else None


def _save(content: bytes, path: Path, facts: Facts) -> Path:
    """Manifest first: a picture without one never lies there."""
    output = hashlib.sha256(content).hexdigest()
    write(manifest_path(path), _json({**facts.manifest(), "output": output}))
    try:
        write(path, content)
    except ValueError:
        manifest_path(path).unlink(missing_ok=True)
        raise
    return path


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _ending(path: str | Path, endings: Sequence[str], what: str) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(tuple(endings)):
        raise ValueError(
            f"{path.name!r} came for {what}, but a name in {' or '.join(endings)} is expected: rename it."
        )
    return path


def to_picture(image: Tensor) -> Image.Image:
    """Floats (3, H, W) in [0, 1], or labels (H, W) uint8, as an 8-bit PIL picture."""
    if image.ndim == 2 and image.dtype == torch.uint8:
        return Image.fromarray(image.cpu().numpy())
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(
            f"save_image got {image.dtype} of shape {tuple(image.shape)}, expected floats (3, H, W) in [0, 1]"
            " or uint8 labels (H, W): convert it."
        )
    pixels = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
