# SPDX-License-Identifier: Apache-2.0
"""Where results go, and as what: PNG, TIFF, NIfTI, JSON, or DICOM (a series, SEG or structured report).

Pictures are (3, H, W) in [0, 1] and label maps (H, W), rows downwards; DICOM and NIfTI volumes are (X, Y, Z).
"""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.cli.options import FORMATS
from monai_unimedvl.cli.reading import holds_dicom
from monai_unimedvl.packages import needed
from monai_unimedvl.provenance import Facts, manifest_path
from monai_unimedvl.transforms.stored import place_of
from monai_unimedvl.transforms.structured import StructuredReport

NAMES = {"ask": "ask", "report": "report", "draw": "drawn", "edit": "edited", "segment": "mask"}
COLOURFUL = 0.1  # of [0, 1]: what differs more between its channels is no grey picture
UNCERTAIN = {"uncertain": (128, 128, 128)}  # the label after the last name of a legend


def format_of(options: Namespace) -> str:
    """The format: --format, else what the ending of --out says, else the verb's first.

    Raises:
        ValueError: one that cannot hold the result, or an ending of another.
    """
    formats = FORMATS[options.verb]
    whole = getattr(options, "whole", False)
    if options.format is not None:
        if whole and options.format == "png":
            raise ValueError("--format png came, but --whole makes a volume: use nifti or dicom.")
        return options.format
    out = options.out
    if out is None or Path(out).is_dir():
        return "nifti" if whole else next(iter(formats))
    name = Path(out).name.lower()
    for format, endings in formats.items():
        if any(end and name.endswith(end) for end in endings) and not (whole and format == "png"):
            return format
    known = [
        end for format, ends in formats.items() for end in ends if end and not (whole and format == "png")
    ]
    raise ValueError(
        f"--out {Path(out).name} came, but a name in {' or '.join(known)} is expected: rename it."
    )


def ending_of(options: Namespace) -> str:
    """What the name of a result ends in; "" for a folder."""
    return FORMATS[options.verb][format_of(options)][0]


def outputs(options: Namespace) -> list[Path]:
    """Where to write: --out, numbered where there are several; in a folder, or without it, a free name.

    Raises:
        ValueError: an ending of another format, or a file that is an input.
    """
    format = format_of(options)
    name, endings = NAMES[options.verb], FORMATS[options.verb][format]
    count = options.count if options.verb == "draw" else 1
    first = Path(options.out or ".")
    inside = endings[0] or any(first.iterdir()) if first.is_dir() else False
    if options.out is None or (inside and not manifest_path(first).exists()):
        free = (first / f"{name}{i or ''}{endings[0]}" for i in range(10_000))
        first = next(
            path for path in free if not any(one.exists() for one in _numbered(path, count, endings[0]))
        )
    ending = next((end for end in endings if first.name.lower().endswith(end)), None)
    others = [end for each in FORMATS[options.verb].values() for end in each if end and not endings[0]]
    if ending is None or first.name.lower().endswith(tuple(others)):
        wanted = f"a name in {' or '.join(endings)}" if endings[0] else "a new folder for DICOM files"
        raise ValueError(f"--out {first.name} came, but {wanted} is expected: rename it.")
    if options.verb == "segment" and format == "dicom":
        for image in options.images:
            if Path(image).exists() and not holds_dicom(image):
                raise ValueError(
                    f"a SEG refers to the DICOM images it was drawn on, and {Path(image).name} is none:"
                    " use --format nifti."
                )
    writable(first)
    if format == "dicom" and endings[0]:  # before the work, and not after it
        needed("highdicom", "DICOM SEG" if options.verb == "segment" else "DICOM SR", "dicom")
    if any(Path(source).exists() and first.resolve() == Path(source).resolve() for source in options.images):
        raise ValueError(
            f"--out {first.name} is the input itself, which is never overwritten: choose another name."
        )
    return _numbered(first, count, ending)


def writable(path: Path) -> None:
    """Said before the work and not after it.

    Raises:
        ValueError: nothing can be written there.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "may not be written to" if above.is_dir() else "is no folder"
        raise ValueError(f"--out {path} cannot be written, as {above.name} {why}: choose another place.")


def write_answer(report: StructuredReport, text: str, path: Path, facts: Facts, options: Namespace) -> None:
    """Words as JSON, or as a structured report about the DICOM images that were read."""
    if format_of(options) == "json":
        provenance.save_text(text, path, facts)
        return
    source = [name for name in options.images if holds_dicom(name)] or None
    provenance.write_report(
        report.findings_text, report.impression, path, facts, source=source,
        keep_identity=options.keep_identity,
    )  # fmt: skip


def write_drawing(image: Tensor, path: Path, facts: Facts, options: Namespace) -> None:
    """A picture (3, H, W) that was drawn from words."""
    if format_of(options) == "dicom":
        volume = image.cpu().movedim(-1, 1)[..., None]  # (3, W, H, 1)
        _series(volume, None, path, facts, options, "OT")
    else:
        provenance.save_image(image, path, facts)


def write_edit(shown: Tensor, whole: Tensor, path: Path, facts: Facts, options: Namespace) -> None:
    """An edited picture.

    Args:
        shown: (3, H, W) with square pixels, for the eye.
        whole: the same on the pixels of the source, with its affine where it has one.
    """
    format = format_of(options)
    if format == "nifti":
        provenance.save_volume(whole.mean(0).as_subclass(Tensor)[..., None], _affine(whole), path, facts)
    elif format == "dicom":
        plain = whole.as_subclass(Tensor).cpu()
        if float((plain.amax(0) - plain.amin(0)).max()) <= COLOURFUL:
            plain = plain.mean(0, keepdim=True)
        # Values in [0, 1] are no HU, so a slice of a CT does not become one.
        modality = "OT" if whole.meta.get("recipe") == "ct" else None  # type: ignore[attr-defined]
        _series(plain.movedim(-1, 1)[..., None], place_of(whole), path, facts, options, modality)
    else:
        provenance.save_image(shown, path, facts)


def write_labels(
    shown: Tensor, whole: Tensor, path: Path, facts: Facts, options: Namespace,
    legend: Mapping[str, tuple[int, int, int]],
) -> None:  # fmt: skip
    """A label map (H, W) uint8, as `write_edit` takes its picture."""
    format = format_of(options)
    if format == "nifti":
        provenance.save_volume(whole.as_subclass(Tensor)[..., None], _affine(whole), path, facts)
    elif format == "dicom":
        plain = whole.as_subclass(Tensor).cpu().movedim(-1, 0)[..., None]  # (W, H, 1)
        _segmentation(plain, place_of(whole), path, facts, options, legend)
    else:
        provenance.save_image(shown, path, facts)


def write_volume(
    volume: MetaTensor, path: Path, facts: Facts, options: Namespace,
    legend: Mapping[str, tuple[int, int, int]] | None = None,
) -> None:  # fmt: skip
    """A volume (1, X, Y, Z) in the space of its source; with a legend, a label map.

    Raises:
        ValueError: several volumes, which no file here holds.
    """
    if volume.shape[0] != 1:
        raise ValueError(
            f"{Path(options.images[0]).name} holds {volume.shape[0]} volumes, but one is expected: split it."
        )
    affine = volume.affine.numpy()
    if format_of(options) == "nifti":
        provenance.save_volume(volume.as_subclass(Tensor)[0], affine, path, facts)
    elif legend is not None:
        _segmentation(volume.as_subclass(Tensor)[0], affine, path, facts, options, legend)
    else:
        _series(volume.as_subclass(Tensor), affine, path, facts, options, None)


def wrote(path: Path) -> str:
    """A line about a result."""
    return f"wrote {path} (synthetic) and {manifest_path(path).name}"


def _numbered(path: Path, count: int, ending: str) -> list[Path]:
    """x.png; of several x-0.png, x-1.png ..."""
    stem = path.name.removesuffix(ending)
    return [path] if count == 1 else [path.with_name(f"{stem}-{i}{ending}") for i in range(count)]


def _series(
    volume: Tensor, affine: np.ndarray | None, path: Path, facts: Facts, options: Namespace,
    modality: str | None,
) -> None:  # fmt: skip
    if path.is_dir() and manifest_path(path).is_file():
        shutil.rmtree(path)  # a result of ours, asked for anew
    source = next((name for name in options.images if holds_dicom(name)), None)
    provenance.write_series(
        volume, path, facts, affine=affine, source=source, modality=modality,
        keep_identity=options.keep_identity,
    )  # fmt: skip


def _segmentation(
    labels: Tensor, affine: np.ndarray | None, path: Path, facts: Facts, options: Namespace,
    legend: Mapping[str, tuple[int, int, int]],
) -> None:  # fmt: skip
    (image,) = options.images
    named: dict[str, Any] = {**legend, **UNCERTAIN} if int(labels.max()) > len(legend) else dict(legend)
    provenance.write_segmentation(
        labels.to(torch.uint8), path, facts, source=image, legend=named, affine=affine,
        keep_identity=options.keep_identity,
    )  # fmt: skip


def _affine(whole: Tensor) -> np.ndarray:
    """From (row, column, 0) of what was put back on its slice to RAS mm.

    Raises:
        ValueError: the slice has no place in space.
    """
    if not isinstance(whole, MetaTensor) or "affine" not in whole.meta["source"]:
        raise ValueError("a NIfTI was asked for, but the input has no place in mm: write a .png.")
    return whole.affine.numpy()
