# SPDX-License-Identifier: Apache-2.0
"""What a file says of where it comes from: marked, altered, unmarked, or stripped of a mark it had.

The mark inside a file is checked against its pixels or words and against itself, the manifest beside it
against its bytes. Where there is no mark, the pixels are searched for the invisible one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError

from monai_unimedvl.provenance.dicom import content_of, pixels_of, read_stamp
from monai_unimedvl.provenance.facts import SOFTWARE, Mark, manifest_path, of_array, of_text, sealed, sha256
from monai_unimedvl.provenance.files import CHUNK, COMMENT, DESCRIPTION, PAGE, VOLUMES, display_span, ending
from monai_unimedvl.provenance.invisible import CT_WINDOW, SIDE, Found, detect
from monai_unimedvl.transforms.deidentify import is_dicom

PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".webp")
WORDS = (".json", ".html")
DICOM = (".dcm", ".dicom", ".ima")
KNOWN = (*PICTURES, *VOLUMES, *WORDS, *DICOM)
SAMPLED = 9  # slices of a volume that are searched for the invisible mark

Case = Literal["marked", "altered", "unmarked", "stripped"]


@dataclass(frozen=True)
class Verdict:
    """Where a file comes from.

    Args:
        case: "marked": as it was made; "altered": marked, but changed since; "unmarked": nothing of ours in
            it; "stripped": no mark in the file, but the invisible one in the pixels.
        why: one sentence.
        mark: the mark inside, where there is one.
        found: of the invisible mark; None where nobody looked.
    """

    case: Case
    why: str
    mark: Mark | None = None
    found: Found | None = None


@dataclass(frozen=True)
class _Opened:
    """A file's mark, what its `content` should be, and the pictures (H, W[, 3]) in it."""

    mark: Mark | None
    content: str
    pictures: list[np.ndarray]
    what: str = "pixels"
    span: tuple[float, float] | None = None  # of the pictures' values, where it is not theirs


def examine(path: str | Path) -> Verdict:
    """Which of the four cases a file is.

    Raises:
        ValueError: no such file, a kind that this package neither writes nor reads, or a damaged file.
    """
    path = Path(path)
    if path.is_dir():
        return _examine_series(path)
    opened = _open(path)
    beside = _manifest(path)
    if opened.mark is not None:
        wrong = _differences(path, opened, beside)
        if wrong:
            return Verdict("altered", f"it is marked as synthetic, but {' and '.join(wrong)}", opened.mark)
        alone = "" if beside or path.suffix == ".json" else "; its manifest is missing, the mark inside fits"
        return Verdict("marked", f"synthetic and as it was made{alone}", opened.mark)
    found = max(
        (detect(picture, opened.span) for picture in opened.pictures), key=lambda f: f.score, default=None
    )
    if found:
        id = f", id {found.id}" if found.id else ""
        why = f"its mark was stripped, but the invisible one is in the pixels (score {found.score:.1f}{id})"
        return Verdict("stripped", why, None, found)
    if beside and beside.get("output"):
        return Verdict(
            "altered", "it has no mark, but the manifest of a synthetic file lies beside it", None, found
        )
    return Verdict("unmarked", f"no mark of {SOFTWARE.split()[0]} was found", None, found)


def read_mark(path: str | Path) -> Mark | None:
    """The mark inside a file, or None where there is none.

    Raises:
        ValueError: no such file, a file of another kind, or a damaged one.
    """
    return _open(Path(path)).mark


def verify(path: str | Path) -> Mark:
    """The manifest beside a file, after checking that it belongs to these very bytes.

    Raises:
        ValueError: no mark, no manifest, or the file was changed after it was made.
    """
    path = Path(path)
    verdict = examine(path)
    if verdict.case in ("unmarked", "stripped") or verdict.mark is None:
        raise ValueError(
            f"{path.name} has no mark of {SOFTWARE.split()[0]}: it was not made, or was stripped."
        )
    if verdict.case == "altered":
        raise ValueError(f"{path.name} was changed after it was made: {verdict.why}.")
    manifest = _manifest(path)
    if manifest is None:
        raise ValueError(
            f"{path.name} is marked as synthetic, but {manifest_path(path).name} is missing: keep them"
            " together."
        )
    return manifest


def _differences(path: Path, opened: _Opened, beside: Mark | None) -> list[str]:
    """What does not fit together, in words."""
    mark = opened.mark
    assert mark is not None
    wrong = []
    if sealed(mark) != mark:
        wrong.append("its mark was edited")
    if mark.get("content") not in (None, opened.content):
        wrong.append(f"its {opened.what} were changed")
    if beside is not None and {k: v for k, v in beside.items() if k != "output"} != mark:
        wrong.append(f"{manifest_path(path).name} tells of another file or was edited")
    elif beside is not None and not wrong and beside.get("output") != sha256(path):
        wrong.append(f"its bytes are not those that {manifest_path(path).name} was written for")
    return wrong


def _manifest(path: Path) -> Mark | None:
    """The manifest beside a file; an unreadable one is an empty one, which fits nothing."""
    beside = manifest_path(path)
    if not beside.is_file():
        return None
    try:
        found = json.loads(beside.read_text("utf8"))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _open(path: Path) -> _Opened:
    if not path.is_file():
        ending(path, KNOWN, "a marked file")
        raise ValueError(f"{path} does not exist, but a file is expected: check the path.")
    if path.name.lower().endswith(DICOM) or is_dicom(path):
        return _dicom(path)
    path = ending(path, KNOWN, "a marked file")
    with _reading(path):
        name = path.name.lower()
        if name.endswith(VOLUMES):
            return _volume(path)
        if name.endswith(WORDS):
            return _json(path) if name.endswith(".json") else _page(path)
        return _picture(path)


def _picture(path: Path) -> _Opened:
    with Image.open(path) as file:
        file.load()  # chunks may follow the pixels
        text = getattr(file, "text", {}).get(CHUNK) or getattr(file, "tag_v2", {}).get(DESCRIPTION)
        stored = np.asarray(file)
        shown = file if file.mode in ("L", "RGB") or file.mode.startswith(("I", "F")) else file.convert("RGB")
        return _Opened(_parsed(text), of_array(stored), [np.asarray(shown)])


def _volume(path: Path) -> _Opened:
    file: Any = nibabel.load(path)
    mark = None
    for extension in file.header.extensions:
        if extension.get_code() == COMMENT:
            mark = mark or _parsed(extension.content.rstrip(b"\0").decode("utf8", "replace"))
    values = np.asarray(file.dataobj)
    if values.ndim != 3 or values.dtype.kind not in "biuf" or min(values.shape[:2]) < SIDE:
        return _Opened(mark, of_array(values), [])
    low, high = display_span(values)
    shown = np.linspace(0, values.shape[2] - 1, min(SAMPLED, values.shape[2])).round().astype(int)
    scaled = (np.clip((values[..., n].T - low) / max(high - low, 1e-12), 0, 1) for n in shown)
    return _Opened(mark, of_array(values), [np.rint(255 * plane).astype(np.uint8) for plane in scaled])


def _dicom(path: Path) -> _Opened:
    try:
        header = pydicom.dcmread(path)
        mark = read_stamp(header)
        if "PixelData" not in header:
            if "Image" in header.file_meta.MediaStorageSOPClassUID.name:
                raise EOFError("no pixels")
            return _Opened(mark, content_of(header), [], "words")
        stored = pixels_of(header)
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ValueError(
            f"{path.name} cannot be read as DICOM ({type(error).__name__}): copy it again."
        ) from error
    opened = _Opened(mark, of_array(stored), [])
    if header.get("Modality") == "SEG" or min(header.Rows, header.Columns) < SIDE:
        return opened
    frames = stored if int(header.get("NumberOfFrames") or 1) > 1 else stored[None]
    shown = [
        frames[n] for n in np.linspace(0, len(frames) - 1, min(SAMPLED, len(frames))).round().astype(int)
    ]
    if header.get("Modality") == "CT":
        slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
        return replace(opened, pictures=[picture * slope + intercept for picture in shown], span=CT_WINDOW)
    if stored.dtype == np.uint8:
        return replace(opened, pictures=shown)
    low, high = np.percentile(np.stack(shown), (0.5, 99.5))
    return replace(opened, pictures=shown, span=(float(low), float(max(high, low + 1))))


def _examine_series(folder: Path) -> Verdict:
    """One verdict on the DICOM files of a folder: the worst of them, and whether any is missing."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_dicom(path))
    if not files:
        raise ValueError(
            f"folder {folder} holds no DICOM files, but a series is expected: name its folder or a file."
        )
    verdicts = [examine(path) for path in files]
    cases = {verdict.case for verdict in verdicts}
    first = verdicts[0]
    beside = _manifest(folder)
    if cases == {"marked"}:
        if beside is not None and beside.get("output") != sha256(folder):
            why = f"its files are not those that {manifest_path(folder).name} was written for"
            return Verdict("altered", f"it is marked as synthetic, but {why}", first.mark)
        alone = "" if beside is not None else "; its manifest is missing, the marks inside fit"
        return Verdict("marked", f"{len(files)} files, synthetic and as they were made{alone}", first.mark)
    if len(cases) == 1 or cases == {"stripped", "unmarked"}:
        worst = max(verdicts, key=lambda verdict: verdict.case == "stripped")
        return replace(
            worst, why=f"{sum(v.case == worst.case for v in verdicts)} of {len(files)} files: {worst.why}"
        )
    odd = [path.name for path, verdict in zip(files, verdicts, strict=True) if verdict.case != "marked"]
    why = f"{len(odd)} of {len(files)} files are not as they were made, {odd[0]} first"
    return Verdict("altered", why, first.mark)


def _json(path: Path) -> _Opened:
    mark = _parsed(path.read_text("utf8"))
    return _Opened(mark, of_text(str((mark or {}).get("text", ""))), [], "words")


def _page(path: Path) -> _Opened:
    html, _, comment = path.read_text("utf8").rpartition(PAGE[0])
    mark = _parsed(comment.strip().removesuffix(PAGE[1].strip()))
    return _Opened(mark, of_text(html), [], "words")


def _parsed(text: str | None) -> Mark | None:
    """A mark of ours out of JSON; None for anything else."""
    try:
        mark = json.loads(text or "")
    except ValueError:
        return None
    return mark if isinstance(mark, dict) and mark.get("synthetic") is True and "software" in mark else None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        UnidentifiedImageError, Image.DecompressionBombError, nibabel.filebasedimages.ImageFileError, OSError,
        SyntaxError, EOFError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path.name} cannot be read ({first}): copy it again.") from error
