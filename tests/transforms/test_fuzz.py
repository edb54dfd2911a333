# SPDX-License-Identifier: Apache-2.0
"""Corrupted files of every format: read, or refused in one line with the name; no crash, no hang, no flood.

A corruption is drawn from a seed: bits flipped, blocks zeroed, filled with ones or noise, removed, the file
cut. Default tier: a few of each format. Slow tier: 200 of each in a process of their own, timed each; its
exit code tells a crash, the system what memory it took at most.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

SECONDS, GIB = 10.0, 2.0


def nifti(folder: Path, ending: str = ".nii") -> Path:
    chance = np.random.default_rng(0)
    path = folder / f"case{ending}"
    nibabel.save(nibabel.Nifti1Image(chance.integers(0, 900, (24, 20, 12)).astype(np.int16), np.eye(4)), path)
    return path


def dicom(folder: Path) -> Path:
    from pydicom.data import get_testdata_file

    path = folder / "case.dcm"
    path.write_bytes(Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes())
    return path


def picture(folder: Path, ending: str, **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    pixels[10:40, 10:60] = 200
    path = folder / f"case{ending}"
    Image.fromarray(pixels).save(path, **options)
    return path


def video(folder: Path) -> Path:
    from transforms.test_video import film

    return film(folder / "case.mp4", 30)


FORMATS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nifti": (nifti, "mri"),
    "nifti.gz": (lambda folder: nifti(folder, ".nii.gz"), "mri"),
    "dicom": (dicom, "ct"),
    "png": (lambda folder: picture(folder, ".png"), "fundus"),
    "jpeg": (lambda folder: picture(folder, ".jpg"), "dermoscopy"),
    "tiff": (lambda folder: picture(folder, ".tif", compression="tiff_lzw"), "histopathology"),
    "video": (video, "endoscopy"),
}


def corrupted(whole: bytes, seed: int) -> bytes:
    """`whole` with one to four faults; those of even seeds lie in the first 600 bytes, where headers are."""
    chance = np.random.default_rng(seed)
    data = bytearray(whole)
    for _ in range(int(chance.integers(1, 5))):
        reach = min(len(data), 600) if seed % 2 == 0 else len(data)
        if reach < 2:
            break
        at = int(chance.integers(0, reach))
        size = int(chance.integers(1, 40))
        kind = int(chance.integers(0, 6))
        if kind == 0:
            data[at] ^= 1 << int(chance.integers(0, 8))
        elif kind == 1:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 2:
            data[at : at + size] = chance.bytes(len(data[at : at + size]))
        elif kind == 3:
            data[at : at + size] = b"\xff" * len(data[at : at + size])
        elif kind == 4:
            del data[at : at + size]
        else:
            data = data[: max(1, int(len(data) * chance.uniform(0.02, 1)))]
    return bytes(data)


def outcome(path: Path, modality: str) -> str:
    """ "read", or "refused" where the message is one line with the name of the file; else what went wrong."""
    from monai_unimedvl import recipe

    start = time.process_time()
    settings = {"policy": "all"} if modality in ("mri", "ct") else {}
    try:
        pictures = recipe(modality, **settings)(path)
        said = (
            "read"
            if all(np.isfinite(one.numpy()).all() for one in pictures)
            else "values that are no numbers"
        )
    except ValueError as error:
        fine = path.name in str(error) and "\n" not in str(error)
        said = "refused" if fine else f"message without the name: {error!r}"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    spent = time.process_time() - start
    return said if spent < SECONDS else f"took {spent:.1f} s"


def run(name: str, folder: Path, seeds: range) -> dict[str, str]:
    """Seed -> what went wrong; and how many were read or refused."""
    make, modality = FORMATS[name]
    path = make(folder)
    whole = path.read_bytes()
    results = {}
    for seed in seeds:
        path.write_bytes(corrupted(whole, seed))
        results[str(seed)] = outcome(path, modality)
    return results


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_few_corruptions_are_read_or_refused(name: str, tmp_path: Path) -> None:
    if name == "video":
        pytest.importorskip("av", reason="PyAV is not installed")
    results = run(name, tmp_path, range(8))
    assert set(results.values()) <= {"read", "refused"}, results
    assert "refused" in results.values(), "the corruptions are too weak to test anything"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_200_corruptions_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """In a process of its own: a crash is an exit code, memory is what the system says it took at most."""
    if name == "video":
        pytest.importorskip("av", reason="PyAV is not installed")
    code = (
        "import json, sys, warnings; warnings.simplefilter('ignore')\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom transforms.test_fuzz import run\n"
        f"results = run({name!r}, Path({str(tmp_path)!r}), range(200))\n"
        "lines = open('/proc/self/status').read().splitlines()\n"  # ru_maxrss would count our own peak too
        "peak = int(next(x for x in lines if x.startswith('VmHWM')).split()[1]) / 2**20\n"
        "print(json.dumps({'peak': peak, 'results': results}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    bad = {seed: what for seed, what in said["results"].items() if what not in ("read", "refused")}
    assert not bad and len(said["results"]) == 200
    assert said["peak"] < GIB, f"{said['peak']:.2f} GiB"
