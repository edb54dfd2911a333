# SPDX-License-Identifier: Apache-2.0
"""The images that users of the panel have open: read once, kept in memory for a while, named by a random id.

Files go to a folder of their own, are read and deleted at once; of their names only the ending is used, and
of their headers what `transforms.deidentify` keeps.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.provenance import sha256
from monai_unimedvl.serve.limits import Limits, Refused
from monai_unimedvl.serve.messages import check_size
from monai_unimedvl.transforms import Recipe, modalities, recipe
from monai_unimedvl.transforms.choosing import Choice, modality_of
from monai_unimedvl.transforms.dicom import series_uids
from monai_unimedvl.transforms.lazy import Prepared, prepare
from monai_unimedvl.transforms.read import DICOM, NIFTI, PICTURES, read
from monai_unimedvl.transforms.slices import PLANES, plane_of

READ = (*NIFTI, *DICOM, *PICTURES)
COMPUTED_TOMOGRAPHY = -500.0  # values below are air in HU; no other unit has them
LEFT_OUT = ("affine", "file", "filename_or_obj")  # of the meta of what was read
PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # columns lead left, rows back: as it lies on the screen


@dataclass(frozen=True)
class Study:
    """An image that is open.

    Args:
        image: a volume (1, X, Y, Z), frames (C, H, W, T) or a picture (C, H, W), as `read` gives it.
        modality: how its values are read.
        note: what was assumed about it, a sentence, or "".
        inputs: sha256 of its files.
        sources: the hashed UIDs of its DICOM series.
        label: what a sample is called; "" for a user's own.
    """

    id: str
    image: MetaTensor
    modality: str
    note: str = ""
    inputs: Sequence[str] = ()
    sources: Sequence[str] = ()
    label: str = ""
    ready: dict[str, Prepared] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "volume", "frames" or "image"."""
        return str(self.image.meta["kind"])

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.image.numel() * self.image.element_size()

    @property
    def planes(self) -> list[str]:
        """In which its slices can be seen: all; of a volume of one slice its own; of pictures none."""
        if self.kind != "volume":
            return []
        shape, affine = self.image.shape[1:], self.image.affine.numpy()
        return list(dict.fromkeys(plane_of(shape, affine, plane) for plane in PLANES))

    def chain(self, square: bool) -> Recipe:
        """The recipe of its modality."""
        return recipe(self.modality, **Choice(square=square).settings())

    def prepared(self, square: bool) -> Prepared:
        """A volume and how its slices become pictures; measured once."""
        if self.modality not in self.ready:
            (self.ready[self.modality],) = prepare(self.chain(square), self.image)
        return self.ready[self.modality]

    def picture(self, plane: str, mm: Sequence[float], square: bool) -> MetaTensor:
        """The slice or frame at a place of the viewer, as the model gets it.

        Raises:
            ValueError: its modality does not read such images.
        """
        if self.kind == "volume":
            part = self.prepared(square)
            slices = part.slices(plane)
            across = float((np.linalg.inv(slices.display.affine) @ [*mm, 1.0])[2])
            return part.picture(slices[min(max(round(across), 0), len(slices) - 1)])
        image = self.image
        if self.kind == "frames":
            values = image.as_subclass(Tensor)[..., min(max(round(mm[2]), 0), image.shape[3] - 1)]
            image = MetaTensor(values, meta={**image.meta, "kind": "image"})
        return self.chain(square)(image)[0]

    def where(self, picture: MetaTensor, mm: Sequence[float]) -> str:
        """In words, counted from 1 as on the page, which slice or frame a picture of it is."""
        if self.kind == "frames":
            return f"frame {min(max(round(mm[2]), 0), self.image.shape[3] - 1) + 1} of {self.image.shape[3]}"
        source = picture.meta["source"]
        if self.kind == "image" or "plane" not in source:
            return "the picture"
        axis = tuple(PLANES).index(source["plane"])
        at = f"{'RAS'[axis]} {source['position'][axis]:+.1f} mm"
        return f"{source['plane']} slice {source['index'] + 1} of {source['count']}, {at}"

    def nifti(self) -> bytes:
        """What the viewer shows: the values as they are, with nothing of the header but the geometry."""
        values = self.image.as_subclass(Tensor).numpy()
        if self.kind == "volume":
            return _nifti(values[0], self.image.affine.numpy())
        values = values.transpose(2, 1, 3, 0) if values.ndim == 4 else values.transpose(2, 1, 0)[:, :, None]
        return _nifti(values if values.shape[3] >= 3 else values[..., 0], PICTURE_AFFINE)  # (W, H, T[, C])

    def told(self, square: bool) -> dict[str, Any]:
        """What the page needs to know."""
        spacing = window = None
        if self.kind == "volume":
            spacing = np.linalg.norm(self.image.affine.numpy()[:3, :3], axis=0).round(3).tolist()
            try:
                window = self.prepared(square).bounds
            except ValueError:
                window = None  # of a modality for pictures; asking says so
        return {
            "id": self.id, "kind": self.kind, "shape": list(self.image.shape[1:]), "spacing": spacing,
            "planes": self.planes, "modality": self.modality,
            "note": self.note, "label": self.label, "window": window,
        }  # fmt: skip


class Studies:
    """Those that are open; the one that was longest unused goes first.

    Args:
        samples: label -> (path, modality or None) of scans that everybody may open.
    """

    def __init__(self, limits: Limits, samples: Mapping[str, tuple[Path, str | None]] | None = None) -> None:
        self.limits, self.samples = limits, dict(samples or {})
        self._open: OrderedDict[str, Study] = OrderedDict()
        self._lock = threading.Lock()

    def sample(self, number: int) -> Study:
        """Open one of the samples.

        Raises:
            Refused: there is none of that number.
        """
        if not 0 <= number < len(self.samples):
            raise Refused(f"Sample {number} came, expected 0 to {len(self.samples) - 1}.", status=404)
        label, (path, modality) = list(self.samples.items())[number]
        return self._keep(replace(_read(path, modality, self.limits), label=label))

    def take(self, files: Sequence[tuple[str, bytes]], modality: str | None) -> Study:
        """Open what a user sends.

        Args:
            files: (name, content); several are the files of one DICOM series, or frames.

        Raises:
            ValueError: no image, or files that do not belong together.
            Refused: too large, or a name with an unknown ending.
        """
        with tempfile.TemporaryDirectory(prefix="unimedvl-") as folder:
            for number, (name, content) in enumerate(files):
                (Path(folder) / f"image{number:05d}{_ending(name, content)}").write_bytes(content)
            paths = sorted(Path(folder).iterdir())
            path = paths[0] if len(paths) == 1 else Path(folder)
            try:
                study = _read(path, modality, self.limits)
            except ValueError as error:
                raise ValueError(_anonymous(str(error), path)) from error
        return self._keep(study)

    def get(self, id_: str) -> Study:
        """An open study.

        Raises:
            Refused: there is none (any more).
        """
        with self._lock:
            if id_ not in self._open:
                raise Refused("This image is not open any more: open it again.", status=404, code="gone")
            self._open.move_to_end(id_)
            return self._open[id_]

    def change(self, id_: str, modality: str) -> Study:
        """Read an open study as another modality.

        Raises:
            Refused: it is not open, or there is no such modality.
        """
        if modality not in modalities():
            raise Refused(f"Modality {modality[:40]!r} came, expected one of {', '.join(modalities())}.")
        changed = replace(self.get(id_), modality=modality, note="")
        with self._lock:
            self._open[id_] = changed
        return changed

    def close(self, id_: str) -> None:
        """Forget a study.

        Raises:
            Refused: it is not open.
        """
        self.get(id_)
        with self._lock:
            self._open.pop(id_, None)

    def _keep(self, study: Study) -> Study:
        with self._lock:
            self._open[study.id] = study
            while len(self._open) > 1 and (
                len(self._open) > self.limits.kept
                or sum(one.nbytes for one in self._open.values()) > self.limits.kept_bytes
            ):
                self._open.popitem(last=False)
        return study


def _read(path: Path, modality: str | None, limits: Limits) -> Study:
    if modality is not None and modality not in modalities():
        raise Refused(f"Modality {modality[:40]!r} came, expected one of {', '.join(modalities())}.")
    volume, notes = None, []
    if path.name.endswith(NIFTI):
        volume, note = _look_at_header(path, limits)
        notes.append(note)
    elif path.suffix.lower() in PICTURES:
        check_size(path, limits, "The picture")
    image = read(path, volume=volume)
    if image.numel() > limits.voxels:
        raise Refused(f"The image has {image.numel():,} values, at most {limits.voxels:,} are read here.")
    if modality is None and path.name.endswith(NIFTI):
        modality = "ct" if float(image.min()) < COMPUTED_TOMOGRAPHY else "mri"
        notes.append(f"NIfTI files do not say what they are: this one is read as {modality.upper()}.")
    elif modality is None:
        modality, _ = modality_of(path)
    kept = {key: value for key, value in image.meta.items() if key not in LEFT_OUT}
    image = MetaTensor(image.as_subclass(Tensor), affine=image.affine, meta=kept)
    return Study(
        secrets.token_urlsafe(12), image, modality, " ".join(filter(None, notes)), [sha256(path)],
        series_uids(path),
    )  # fmt: skip


def _look_at_header(path: Path, limits: Limits) -> tuple[int | None, str]:
    """Which volume of a NIfTI is read, and a remark; a file that would not fit is refused unread."""
    try:
        shape = nibabel.load(path).shape  # type: ignore[attr-defined]
    except Exception as error:  # nibabel raises many kinds for damaged headers
        raise ValueError(f"{path.name} cannot be read as NIfTI: copy or export it again.") from error
    voxels = int(np.prod(shape[:3], dtype=float))
    if voxels > limits.voxels:
        raise Refused(f"The volume has {voxels:,} voxels, at most {limits.voxels:,} are read here: crop it.")
    if len(shape) > 3 and shape[3] > 1:
        return 0, f"Of {shape[3]} volumes in this file the first is shown."
    return None, ""


def _ending(name: str, content: bytes) -> str:
    """The ending of a file's name, as far as it says how to read it; of DICOM its first bytes do."""
    found = next((end for end in READ if name.lower().endswith(end)), None)
    if content[128:132] == b"DICM":
        found = ".dcm"
    if found is None:
        raise Refused(
            f"A file whose name ends in {Path(name).suffix[:12]!r} came, expected {', '.join(READ)}: send "
            "another."
        )
    return found


def _anonymous(text: str, path: Path) -> str:
    """A message about a file that has been given a name of ours."""
    for known in (f"folder {path}", str(path), path.name):
        text = text.replace(known, "the image")
    return f"{text[0].upper()}{text[1:]}"


def _nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    """A NIfTI in the smallest type that holds the values: uint8, int16, float32, or RGB (X, Y, Z, 3)."""
    if values.ndim == 4:
        colours = values[..., :3]
        if colours.dtype != np.uint8:
            top = max(float(colours.max()), 1e-12)
            colours = (colours / top * 255).astype(np.uint8)
        packed = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
        return bytes(nibabel.Nifti1Image(packed, affine).to_bytes())
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        whole = -32768 <= low and high <= 32767 and bool((values == np.rint(values)).all())
        values = values.astype(np.int16 if whole else np.float32)
    image = nibabel.Nifti1Image(values, np.asarray(affine, dtype=np.float64))
    return bytes(image.to_bytes())
