# SPDX-License-Identifier: Apache-2.0
"""A build whose files want a package that is not installed stops at once and names the extra."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLosslessSV1
from sources import dicom, png

from monai_unimedvl.data.files import Sink, read_records
from monai_unimedvl.data.pipeline import build_dataset
from monai_unimedvl.packages import MissingPackage
from monai_unimedvl.transforms.slide import ReadTiles

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")


def film(folder: Path) -> None:
    (folder / "b.mp4").write_bytes(b"whatever a film is")


def slide(folder: Path) -> None:
    (folder / "b.svs").write_bytes(b"whatever a slide is")


def deep(folder: Path) -> None:
    """A TIFF of 16 bits a colour, which PIL opens as one of 8."""
    tifffile = pytest.importorskip("tifffile", reason="TIFF of 16 bits needs the extra 'data'")
    tifffile.imwrite(folder / "b.tif", np.zeros((40, 48, 3), np.uint16), photometric="rgb")


def levels(folder: Path) -> None:
    """A TIFF in tiles and levels: a slide without the name of one."""
    tifffile = pytest.importorskip("tifffile", reason="writing tiles needs the extra 'wsi'")
    with tifffile.TiffWriter(folder / "b.tif") as file:
        for size in (64, 32):
            file.write(np.zeros((size, size, 3), np.uint8), photometric="rgb", tile=(16, 16))


def packed(folder: Path) -> None:
    """Lossless JPEG, as many archives keep their images."""
    header = pydicom.dcmread(dicom(folder / "b.dcm"))
    header.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 whatever it is"])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    header.save_as(folder / "b.dcm")


CASES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "a film": (film, "av", "endoscopy", r"A video needs av, .*\[video\]"),
    "a slide": (slide, "openslide", "histopathology", r"A slide needs openslide, .*\[wsi\]"),
    "a slide as TIFF": (levels, "openslide", "histopathology", r"A slide needs openslide, .*\[wsi\]"),
    "a deep TIFF": (deep, "tifffile", "histopathology", r"A TIFF .* needs tifffile, .*\[data\]"),
    "a packed DICOM": (packed, "", "mri", r"DICOM packed as JPEG Lossless.* a decoder, .*\[dicom-gdcm\]"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_build_stops_at_once_and_names_the_extra(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, package, modality, said = CASES[case]
    png(tmp_path / "in" / "a.png", mode="RGB")  # is kept, and nobody's fault
    write(tmp_path / "in")
    if package:
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    else:
        monkeypatch.setattr(type(get_decoder(JPEGLosslessSV1)), "is_available", False)
    source = {"step": "ingest-images", "path": str(tmp_path / "in"), "dataset": "d", "modality": modality}
    told = {"name": "n", "sources": [{**source, "public": True, "optional": True}], "steps": []}
    with pytest.raises(MissingPackage, match=rf"^{said}'\.$") as error:
        build_dataset(told, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_optional_source_is_not_left_out_because_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"question": ["What?"]}), tmp_path / "rows.parquet")
    source = {
        "step": "ingest-table",
        "path": str(tmp_path / "rows.parquet"),
        "dataset": "d",
        "modality": "mri",
    }
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    told = {"name": "n", "sources": [{**source, "public": True, "optional": True}], "steps": []}
    with pytest.raises(MissingPackage, match=r"needs pyarrow, which is not installed: .*\[data\]"):
        build_dataset(told, tmp_path / "out", progress=False)


def test_parquet_without_pyarrow_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackage, match=r"needs pyarrow"), Sink(tmp_path / "records.parquet"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "records.parquet").touch()
    with pytest.raises(MissingPackage, match=r"needs pyarrow"):
        list(read_records(tmp_path / "records.parquet"))


def test_a_tiled_tiff_that_is_one_small_picture_needs_no_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="writing tiles needs the extra 'wsi'")
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((64, 48, 3), np.uint8), photometric="rgb", tile=(16, 16))
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "p.tif")
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert ReadTiles()(tmp_path / "t.tif").shape == ReadTiles()(tmp_path / "p.tif").shape == (3, 64, 48)
