# SPDX-License-Identifier: Apache-2.0
"""NRRD files lie where NIfTI files of the same volume lie; what is no single volume is one sentence."""

from __future__ import annotations

import bz2
import gzip
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from torch.testing import assert_close

from monai_unimedvl.packages import MissingPackage
from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.read import read

nrrd = pytest.importorskip("nrrd", reason="pynrrd is of the extra 'data'")

PLACE = np.array([[-1.5, 0, 0, 40], [0, 0.1, 2.0, -30], [0, 3.0, -0.2, 7], [0, 0, 0, 1]])  # oblique, to RAS
SPACES = {
    "left-posterior-superior": [-1, -1, 1], "right-anterior-superior": [1, 1, 1],
    "left-anterior-superior": [-1, 1, 1],
}  # fmt: skip


def volume(kind: str = "int16") -> np.ndarray:
    """(X, Y, Z) of 15 x 16 x 9, all different."""
    return np.arange(15 * 16 * 9).reshape(15, 16, 9).astype(kind)


def header(space: str = "left-posterior-superior", **more: Any) -> dict[str, Any]:
    """Where `PLACE` is, in the words of NRRD."""
    turned = np.diag([*SPACES[space], 1]) @ PLACE
    return {"space": space, "space directions": turned[:3, :3].T, "space origin": turned[:3, 3],
            "kinds": ["domain"] * 3, **more}  # fmt: skip


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_a_volume_lies_where_its_nifti_lies_in_any_space(tmp_path: Path, space: str, encoding: str) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), volume(), header(space, encoding=encoding))
    nibabel.save(nibabel.Nifti1Image(volume(), PLACE), tmp_path / "a.nii")
    one, other = read(tmp_path / "a.nrrd"), read(tmp_path / "a.nii")
    assert one.meta["kind"] == "volume" and one.meta["placed"] and one.dtype == other.dtype
    assert_close(one.as_tensor(), other.as_tensor(), atol=0, rtol=0)
    assert_close(one.affine, other.affine, atol=1e-5, rtol=0)
    ours, theirs = (recipe("mri", policy="all")(tmp_path / name) for name in ("a.nrrd", "a.nii"))
    for picture, twin in zip(ours, theirs, strict=True):
        assert_close(picture.as_tensor(), twin.as_tensor(), atol=0, rtol=0)


def test_without_a_space_a_volume_has_no_place_and_a_picture_has_one_slice(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "bare.nrrd"), volume("uint8"))
    bare = read(tmp_path / "bare.nrrd")
    assert bare.shape == (1, 15, 16, 9) and bare.meta["placed"] is False and str(bare.dtype) == "torch.uint8"
    nrrd.write(str(tmp_path / "flat.nrrd"), volume()[..., 0])
    assert read(tmp_path / "flat.nrrd").shape == (1, 15, 16, 1)
    layer = {**header(), "kinds": ["list", "domain", "domain", "domain"]}
    layer["space directions"] = np.vstack([[np.nan] * 3, layer["space directions"]])
    nrrd.write(str(tmp_path / "a.seg.nrrd"), volume()[None], layer)
    assert read(tmp_path / "a.seg.nrrd").shape == (1, 15, 16, 9)


def test_what_is_no_single_volume_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path / "bad.nrrd", **options)
        assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)

    layers = {**header(), "kinds": ["list", "domain", "domain", "domain"]}
    layers["space directions"] = np.vstack([[np.nan] * 3, layers["space directions"]])
    nrrd.write(str(tmp_path / "bad.nrrd"), np.stack([volume(), volume()]), layers)
    refused("where one 3-D volume is needed")
    flat = header()
    flat["space directions"] = np.array([[1.0, 0, 0], [0, 1, 0], [0, 2, 0]])
    nrrd.write(str(tmp_path / "bad.nrrd"), volume(), flat)
    refused("an affine that cannot be inverted")
    nrrd.write(str(tmp_path / "good.nrrd"), volume(), header(encoding="raw"))
    whole = (tmp_path / "good.nrrd").read_bytes()
    (tmp_path / "bad.nrrd").write_bytes(whole[:-20])
    refused("cannot be read as NRRD")
    (tmp_path / "bad.nrrd").write_bytes(whole.replace(b"sizes: 15 16 9", b"sizes: 5000 6000 7000"))
    refused("1 to 500,000,000 voxels are read")
    words, _, values = whole.partition(b"\n\n")
    (tmp_path / "bad.nrrd").write_bytes(words + b"\ndata file: good.nrrd\n\n")
    refused("in another file")
    for encoding, pack in ((b"gzip", gzip.compress), (b"bz2", bz2.compress)):
        bomb = words.replace(b"encoding: raw", b"encoding: " + encoding) + b"\n\n" + pack(values * 1000)
        (tmp_path / "bad.nrrd").write_bytes(bomb)
        refused("unpacks to more than")


@pytest.mark.parametrize("reader", [read, recipe("mri")])
def test_no_file_is_at_fault_where_the_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Any
) -> None:
    nrrd.write(str(tmp_path / "Quasimodo.nrrd"), volume(), header())
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(MissingPackage, match="An NRRD file needs nrrd, which is not installed: pip install"):
        reader(tmp_path / "Quasimodo.nrrd")
