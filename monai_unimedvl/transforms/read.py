# SPDX-License-Identifier: Apache-2.0
"""A file, a folder or an array -> one MetaTensor in the values of its maker: HU, 12 bits, colours.

`meta["kind"]` says what came: "image" (C, H, W), rows first; "volume" (1, X, Y, Z) with its affine to RAS mm,
as MONAI's readers give it; "frames" (C, H, W, T), a run of pictures. 8-bit values stay uint8, all others
become float32; nothing is cut off. Pictures of PIL and DICOM come as (W, H) from many readers; here they are
turned once.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends
from PIL import Image, ImageOps
from torch import Tensor

from monai_unimedvl.packages import MissingPackage, needed
from monai_unimedvl.transforms import dicom
from monai_unimedvl.transforms.image import (
    MAX_IMAGE_PIXELS,
    PerKey,
    check_picture,
    check_turned,
    not_finite,
    too_large,
)
from monai_unimedvl.transforms.nrrd import NRRD, read_values
from monai_unimedvl.transforms.video import VIDEOS, read_video

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
DICOM = (".dcm", ".dicom", ".ima")
NIFTI = (".nii", ".nii.gz")
VOLUMES = (*NIFTI, *NRRD)
KNOWN = "NIfTI (.nii, .nii.gz), NRRD, DICOM (.dcm or a folder), PNG, JPEG, TIFF, BMP, GIF, WebP, video, .npy"
MAX_VOXELS = 500_000_000  # 2 GB in float32


def read(
    source: Any, *, voi: bool = False, volume: int | None = None, nonfinite: float | None = None,
    frames: int | None = None,
) -> MetaTensor:  # fmt: skip
    """An image of any kind, checked, with `meta["kind"]`, `meta["file"]` and, where known, its affine.

    Args:
        source: path of a file, of a DICOM series folder, or of a folder of pictures (frames); or an array:
            (H, W), (C, H, W) with 1, 3 or 4 channels, NumPy's (H, W, 3 or 4), a volume (1, X, Y, Z).
            MONAI's LoadImage gives flat pictures as (C, W, H): turn those first, or pass the path.
        voi: apply the VOI LUT or window that a DICOM file carries; the result is in [0, 1].
        volume: which one of a 4-D series (time, diffusion).
        nonfinite: the value that NaN and Inf are replaced by; None refuses them.
        frames: of a video at most that many, evenly spread; None takes all.

    Raises:
        ValueError: one line with the file's name, what came, what was expected and what to do.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = path.name or str(path)
        image = _open(path, voi, volume, frames)
        image.meta["file"] = image.meta["filename_or_obj"] = str(path)
    else:
        name, image = "image", _from_array(source)
    if not image.numel():
        raise ValueError(
            f"{name} is empty, shape {tuple(image.shape)}, but pixels are expected: look at what made it."
        )
    if nonfinite is not None and image.dtype.is_floating_point:
        image = torch.nan_to_num(image, nonfinite, nonfinite, nonfinite)
    if image.ndim == 3:
        check_picture(image, name)
    elif image.meta["kind"] == "frames":
        check_picture(image[..., 0], name)
    if image.ndim > 3 and (count := not_finite(image)):
        raise ValueError(
            f"{name} has {count} values that are NaN or Inf, but finite numbers are expected: "
            "repair the file, or read it with nonfinite=0.0 to count them as 0."
        )
    return image


class Read(Transform):
    """`read` as the first step of a chain; the arguments are the same."""

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, voi: bool = False, volume: int | None = None, nonfinite: float | None = None,
        frames: int | None = None,
    ) -> None:  # fmt: skip
        self.voi, self.volume, self.nonfinite, self.frames = voi, volume, nonfinite, frames

    def __call__(self, source: Any) -> MetaTensor:
        """path, folder or array -> (C, H, W), (1, X, Y, Z) or (C, H, W, T)"""
        return read(
            source, voi=self.voi, volume=self.volume, nonfinite=self.nonfinite, frames=self.frames
        )  # fmt: skip


class Readd(PerKey):
    """Dictionary form of `Read`."""

    array = Read


ReadD = ReadDict = Readd


def tensor_of(values: np.ndarray) -> Tensor:
    """uint8 as it is, everything else as float32; raises ValueError for what are no numbers."""
    if values.dtype.kind not in "buif":
        raise ValueError(
            f"values of type {values.dtype} came, but whole or real numbers are expected: convert them."
        )
    kind = np.uint8 if values.dtype in (np.uint8, np.bool_) else np.float32
    return torch.from_numpy(np.array(values, dtype=kind, order="C"))


@contextmanager
def opening(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a reader raises, but that its package is missing, into one line with the file's name."""
    try:
        yield
    except MissingPackage:
        raise
    except Exception as error:  # readers raise many kinds for damaged files
        if type(error) is ValueError and path.name in str(error):
            raise  # one of ours
        raise _damaged(path, what, str(error) or type(error).__name__) from error


def _damaged(path: Path, what: str, reason: str) -> ValueError:
    first = (reason.strip().splitlines() or ["no reason given"])[0]
    first = first.replace(str(path), path.name).rstrip(".")[:160]
    return ValueError(
        f"{path.name} cannot be read as {what} ({first}): it may be cut short or damaged; copy or export "
        "it again."
    )


def _open(path: Path, voi: bool, volume: int | None, frames: int | None = None) -> MetaTensor:
    if not path.exists():
        raise ValueError(f"{path} does not exist, but a file or folder is expected: check the path.")
    if path.is_dir():
        return _open_folder(path, voi)
    if path.stat().st_size == 0:
        raise ValueError(
            f"{path.name} is empty (0 bytes), but an image is expected: copy or export it again."
        )
    suffix = path.suffix.lower()
    if path.name.lower().endswith(NIFTI):
        with opening(path, "NIfTI"):
            return _nifti(path, volume)
    if suffix in NRRD:
        with opening(path, "NRRD"):
            return _nrrd(path)
    if suffix in DICOM or dicom.is_dicom(path):
        with opening(path, "DICOM"):
            return dicom.read_file(path, voi, frames)
    if suffix in PICTURES:
        with opening(path, suffix[1:].upper()):
            return _picture(path)
    if suffix in VIDEOS:
        with opening(path, "video"):
            return read_video(path, frames)
    if suffix == ".npy":
        with opening(path, "NPY"):
            return _from_array(np.load(path, allow_pickle=False))
    raise ValueError(
        f"{path.name} has an unknown suffix {suffix!r}, but {KNOWN} is expected: convert it to one."
    )


def _open_folder(folder: Path, voi: bool) -> MetaTensor:
    if slices := dicom_files(folder):
        return dicom.read_series(folder, slices, voi)
    files = _files(folder)
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        raise ValueError(
            f"folder {folder} holds no images among its {len(files)} files, but a DICOM series or pictures "
            f"({', '.join(PICTURES)}) are expected: name the folder that holds them."
        )
    frames = [_open(path, voi, None) for path in pictures]
    sizes = {tuple(frame.shape) for frame in frames}
    if len(sizes) > 1 or frames[0].ndim != 3:
        raise ValueError(
            f"folder {folder} holds pictures of {len(sizes)} shapes, such as {sorted(sizes)[:2]}, but the "
            "frames "
            "of a run have one: pass the pictures one by one."
        )
    values = torch.stack([frame.as_subclass(Tensor) for frame in frames], dim=-1)
    return MetaTensor(values, meta={"kind": "frames"})


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder in the order of their names, without its directory file."""
    return [path for path in _files(folder) if dicom.is_dicom(path) and path.name.upper() != "DICOMDIR"]


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]


def _nifti(path: Path, volume: int | None) -> MetaTensor:
    file: Any = nibabel.load(path)
    shape = file.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    voxels = int(np.prod(shape[:3], dtype=float))
    if not shape or min(shape) < 1 or voxels > MAX_VOXELS:
        raise ValueError(
            f"{path.name} says its shape is {file.shape}, but 1 to {MAX_VOXELS:,} voxels are read: check "
            "the header."
        )
    spectrum = file.dataobj
    if len(shape) == 4 and volume is None:
        raise ValueError(
            f"{path.name} is 4-D, shape {shape}, where one 3-D volume is needed: "
            f"choose one with volume=0 to volume={shape[3] - 1}."
        )
    if len(shape) == 4 and volume is not None and not 0 <= volume < shape[3]:
        raise ValueError(
            f"{path.name} has volumes 0 to {shape[3] - 1}, not volume={volume}: choose one of these."
        )
    if len(shape) > 4:
        raise ValueError(
            f"{path.name} is {len(shape)}-D, shape {shape}, where one 3-D volume is needed: split it."
        )
    values = np.asanyarray(spectrum[..., volume] if len(shape) == 4 else spectrum)
    values = values.reshape((*values.shape, 1, 1, 1)[:3] if values.ndim < 3 else values.shape[:3])
    affine = torch.from_numpy(np.array(file.affine, dtype=np.float64))
    if not bool(torch.isfinite(affine).all()) or abs(float(torch.det(affine[:3, :3]))) < 1e-12:
        raise ValueError(
            f"{path.name} has an affine that cannot be inverted, expected mm per voxel: repair its header."
        )
    return MetaTensor(tensor_of(values)[None], affine=affine, meta={"kind": "volume", "placed": True})


def _nrrd(path: Path) -> MetaTensor:
    values, place = read_values(path, MAX_VOXELS)
    if place is not None and (not np.isfinite(place).all() or abs(np.linalg.det(place[:3, :3])) < 1e-12):
        raise ValueError(
            f"{path.name} has an affine that cannot be inverted, expected mm per voxel: repair its header."
        )
    affine = torch.from_numpy(np.eye(4) if place is None else place)
    meta = {"kind": "volume", "placed": place is not None}
    return MetaTensor(tensor_of(values)[None], affine=affine, meta=meta)


def _picture(path: Path) -> MetaTensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                if file.width * file.height > MAX_IMAGE_PIXELS:
                    raise ValueError(too_large(path.name, f"{file.width}x{file.height} pixels"))
                if _deep_colour(file):
                    return _run(_tiff_pages(path))
                frames: list[Tensor] = []
                for index in range(getattr(file, "n_frames", 1)):
                    file.seek(index)
                    if (
                        file.size != (file.width, file.height)
                        or len(frames) * file.width * file.height > MAX_VOXELS
                    ):
                        raise ValueError(f"{path.name} holds too many frames to read at once: split it.")
                    frames.append(_pixels(file))
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        what = f"{int(count.group()):,} pixels" if count else "too many pixels"
        raise ValueError(too_large(path.name, what)) from error
    except Image.UnidentifiedImageError:
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
        frames = _tiff_pages(path)
    return _run(frames)


def _deep_colour(file: Image.Image) -> bool:
    """A TIFF with more than 8 bits a colour, of which PIL would drop the lower ones."""
    bits = getattr(file, "tag_v2", {}).get(258, (8,))
    return file.mode in ("RGB", "RGBA") and max(bits) > 8


def _run(frames: list[Tensor]) -> MetaTensor:
    """One picture, or frames of one size."""
    if len({frame.shape for frame in frames}) > 1:
        frames = frames[:1]  # thumbnails and pyramid levels behind the picture
    if len(frames) == 1:
        return MetaTensor(frames[0], meta={"kind": "image"})
    return MetaTensor(torch.stack(frames, dim=-1), meta={"kind": "frames"})


def _pixels(file: Image.Image) -> Tensor:
    """(C, H, W): uint8; float32 where a grey file has more than 8 bits (16-bit colour PNG: the upper 8)."""
    picture = ImageOps.exif_transpose(file)
    if picture.mode in ("1", "L"):
        return tensor_of(np.array(picture.convert("L")))[None]
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return tensor_of(np.array(picture))[None]
    picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return tensor_of(np.moveaxis(np.array(picture), -1, 0))


def _tiff_pages(path: Path) -> list[Tensor]:
    """TIFF kinds that PIL does not open (16-bit colour, float with predictor), through tifffile."""
    tifffile: Any = needed("tifffile", "A TIFF that PIL cannot open whole", "data")
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if (
            int(np.prod(series.shape, dtype=float)) > MAX_VOXELS
            or series.keyframe.size > 4 * MAX_IMAGE_PIXELS
        ):
            raise ValueError(too_large(path.name, f"shape {series.shape}"))
        values = series.asarray()
        axes = series.axes
    if "S" in axes:
        values = np.moveaxis(values, axes.index("S"), 0)
    else:
        values = values[None]
    height, width = values.shape[-2:]
    stack = tensor_of(values.reshape(values.shape[0], -1, height, width))
    return list(stack.unbind(1))


def _from_array(source: Any) -> MetaTensor:
    """Arrays and tensors under the rules of `read`; a MetaTensor keeps its meta and affine."""
    if isinstance(source, MetaTensor):
        check_turned(source)
        image = source
        if image.dtype != torch.uint8:
            image = image.float()
    elif isinstance(source, Tensor):
        if source.is_complex():
            raise ValueError(
                f"values of type {source.dtype} came, but real numbers are expected: convert them."
            )
        image = MetaTensor(source if source.dtype == torch.uint8 else source.float())
    elif isinstance(source, np.ndarray):
        values = source
        if values.ndim == 3 and values.shape[0] not in (1, 3, 4) and values.shape[-1] in (3, 4):
            values = np.moveaxis(values, -1, 0)  # NumPy pictures have their colours last
        image = MetaTensor(tensor_of(values))
    else:
        raise ValueError(
            f"a {type(source).__name__} came, but a path, an array or a tensor is expected: pass one "
            "image at a time."
        )
    if image.ndim == 2:
        image = image[None]
    if image.ndim not in (3, 4):
        raise ValueError(
            f"image has {image.ndim} dimensions, shape {tuple(image.shape)}, but a picture (C, H, W) or a "
            "volume "
            "(1, X, Y, Z) is expected: pass one."
        )
    kind = image.meta.get("kind") or ("image" if image.ndim == 3 else "volume")
    if image.ndim == 4 and kind == "volume" and image.shape[0] != 1:
        raise ValueError(
            f"image is 4-D, shape {tuple(image.shape)}, where a 3-D picture (C, H, W) or a volume (1, X, "
            "Y, Z) is "
            "needed: pass its pictures one by one."
        )
    placed = image.meta.get("placed", isinstance(source, MetaTensor) and image.ndim == 4)
    result = MetaTensor(image.as_subclass(Tensor)).copy_meta_from(image, copy_attr=True)
    result.meta = {**image.meta, "kind": kind, "placed": placed}
    return result
