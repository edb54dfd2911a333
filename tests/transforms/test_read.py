# SPDX-License-Identifier: Apache-2.0
"""Real files of every kind keep their values and their place; bad ones get one line that helps."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.data import PydicomReader
from monai.transforms import LoadImage
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_windowing
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from torch.testing import assert_close

from monai_unimedvl.transforms.dicom_values import _by_table
from monai_unimedvl.transforms.read import Read, Readd, read


def dicom_file(name: str) -> str:
    """The path of one of pydicom's own test files that are part of its package."""
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return str(path)


def series(
    folder: Path, count: int = 5, spacing: float = 2.5, skip: tuple[int, ...] = (), backwards: bool = False
) -> Path:
    """A CT series made of CT_small's header: slice i holds the value i + 1000; names are shuffled."""
    uid = generate_uid()
    for i in range(count):
        if i in skip:
            continue
        header = pydicom.dcmread(dicom_file("CT_small.dcm"))
        header.SeriesInstanceUID, header.SOPInstanceUID = uid, generate_uid()
        header.SOPClassUID = CTImageStorage
        header.InstanceNumber = count - i if backwards else i + 1
        header.ImagePositionPatient = [-40.0, -30.0, i * spacing]
        header.Rows, header.Columns, header.PixelSpacing = 16, 24, [1.5, 0.75]
        header.PixelData = np.full((16, 24), i + 1000, np.int16).tobytes()
        header.save_as(folder / f"{(i * 7) % count:03d}.dcm")
    return folder


# What is read ---------------------------------------------------------------------------------------------


def test_ct_comes_in_hu_as_monai_reads_it() -> None:
    path = dicom_file("CT_small.dcm")
    ours = read(path)
    theirs = LoadImage(reader=PydicomReader(), image_only=True)(path).squeeze()  # (columns, rows)
    assert ours.shape == (1, 128, 128) and ours.dtype == torch.float32
    assert torch.equal(ours[0].as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor).T.float())
    assert float(ours.min()) == -896 and float(ours.max()) == 1167


def test_a_series_is_the_volume_that_monai_reads(tmp_path: Path) -> None:
    volume = read(series(tmp_path))
    assert volume.shape == (1, 24, 16, 5) and volume.meta["kind"] == "volume"
    theirs = LoadImage(reader=PydicomReader(), image_only=True)(str(tmp_path))
    assert_close(volume.affine, theirs.affine.to(torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(volume[0].as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor).float())
    assert volume[0, 0, 0].tolist() == [-24.0, -23.0, -22.0, -21.0, -20.0]  # rescale intercept -1024


def test_slices_are_ordered_by_place_and_not_by_number(tmp_path: Path) -> None:
    volume = read(series(tmp_path, backwards=True))
    assert volume[0, 0, 0].tolist() == [-24.0, -23.0, -22.0, -21.0, -20.0]


def test_nifti_keeps_values_and_affine(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1000, 3000, (9, 10, 11)).astype(np.int16)
    affine = np.array([[-1.0, 0, 0, 5], [0, 2, 0.1, -7], [0, -0.1, 3, 9], [0, 0, 0, 1]])
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / name)
        volume = read(tmp_path / name)
        assert np.array_equal(volume.numpy()[0], values) and volume.shape == (1, 9, 10, 11)
        assert_close(volume.affine.numpy(), affine, atol=1e-6, rtol=0)


def test_one_volume_of_a_series_in_time_is_chosen(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((9, 10, 11, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "bold.nii.gz")
    assert np.array_equal(read(tmp_path / "bold.nii.gz", volume=2).numpy()[0], values[..., 2])
    with pytest.raises(ValueError, match=r"bold.nii.gz is 4-D, shape \(9, 10, 11, 3\).*volume=0 to volume=2"):
        read(tmp_path / "bold.nii.gz")
    with pytest.raises(ValueError, match=r"bold.nii.gz has volumes 0 to 2, not volume=3"):
        read(tmp_path / "bold.nii.gz", volume=3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_kept_and_rows_come_first(tmp_path: Path, suffix: str) -> None:
    values = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30) * 109
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    picture = read(tmp_path / f"x.{suffix}")
    assert picture.shape == (1, 20, 30) and np.array_equal(picture.numpy()[0], values)


def test_16_bit_colour_and_pages_of_a_tiff_are_kept(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    colours = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "c.tif", colours, photometric="rgb")
    assert np.array_equal(read(tmp_path / "c.tif").numpy(), colours.transpose(2, 0, 1))
    pages = np.random.default_rng(0).integers(0, 256, (4, 20, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", pages, photometric="minisblack")
    run = read(tmp_path / "p.tif")
    assert run.meta["kind"] == "frames" and np.array_equal(run.numpy()[0], pages.transpose(1, 2, 0))


def test_red_stays_red(tmp_path: Path) -> None:
    red = np.zeros((16, 20, 3), np.uint8)
    red[..., 0] = 200
    for name in ("r.png", "r.tif", "r.bmp", "r.jpg"):
        Image.fromarray(red).save(tmp_path / name)
        assert read(tmp_path / name).float().mean((1, 2)).argmax() == 0, name
    assert read(dicom_file("SC_rgb_rle.dcm"))[:, 5, 5].tolist() == [255, 0, 0]


def test_transparent_pictures_keep_their_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (10, 20, 30, 128)).save(tmp_path / "t.png")
    Image.new("LA", (16, 16), (10, 128)).save(tmp_path / "la.png")
    assert read(tmp_path / "t.png")[:, 0, 0].tolist() == [10, 20, 30, 128]
    assert read(tmp_path / "la.png")[:, 0, 0].tolist() == [10, 10, 10, 128]


def test_a_camera_that_was_turned_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read(tmp_path / "turned.jpg").shape == (1, 40, 20)


def test_a_folder_of_pictures_is_a_run_in_natural_order(tmp_path: Path) -> None:
    for i in range(11):
        Image.new("L", (16, 12), i).save(tmp_path / f"frame{i}.png")
    run = read(tmp_path)
    assert run.shape == (1, 12, 16, 11) and run[0, 0, 0].tolist() == list(range(11))


def test_monochrome1_is_turned_but_not_in_ct(tmp_path: Path) -> None:
    header = pydicom.dcmread(dicom_file("MR_small.dcm"))
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as(tmp_path / "m1.dcm")
    turned = read(tmp_path / "m1.dcm").numpy()[0]
    upright = read(dicom_file("MR_small.dcm")).numpy()[0]
    assert header.BitsStored == 16 and header.PixelRepresentation == 1
    assert np.array_equal(turned, -1 - upright)  # -32768 and 32767 change places, whatever the slice holds
    header.PixelData = header.pixel_array.astype(np.uint8).tobytes()
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.save_as(tmp_path / "bytes.dcm")
    bytes_ = read(tmp_path / "bytes.dcm")
    assert bytes_.dtype == torch.uint8, "bytes are greys as they are, and stay so"
    header = pydicom.dcmread(dicom_file("MR_small.dcm"))
    header.Modality, header.PhotometricInterpretation = "CT", "MONOCHROME1"
    header.save_as(tmp_path / "ct.dcm")
    assert np.array_equal(read(tmp_path / "ct.dcm").numpy()[0], upright)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_of_the_file_is_that_of_the_standard(tmp_path: Path, function: str) -> None:
    header = pydicom.dcmread(dicom_file("CT_small.dcm"))
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = [40, 99], [350, 1], function
    header.RescaleIntercept = header.RescaleSlope = None
    del header.RescaleIntercept, header.RescaleSlope
    header.save_as(tmp_path / "w.dcm")
    theirs = apply_windowing(header.pixel_array, header)
    low, high = -(2.0**15), 2.0**15 - 1
    assert_close(
        read(tmp_path / "w.dcm", voi=True).numpy()[0], ((theirs - low) / (high - low)).astype(np.float32)
    )


def test_a_voi_table_is_looked_up(tmp_path: Path) -> None:
    header = pydicom.dcmread(dicom_file("MR_small.dcm"))
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 12])
    table.add_new("LUTData", "US", list(range(4095, -1, -1)))
    header.VOILUTSequence = [table]
    header.save_as(tmp_path / "lut.dcm")
    stored = header.pixel_array.clip(0, 4095)
    assert_close(read(tmp_path / "lut.dcm", voi=True).numpy()[0], ((4095 - stored) / 4095).astype(np.float32))


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int8, np.uint8])
def test_what_is_looked_up_is_what_is_worked_out(kind: type) -> None:
    ends = np.iinfo(kind)
    stored = np.random.default_rng(0).integers(ends.min, ends.max + 1, (300, 301), dtype=kind)
    stored[0, :2] = ends.min, ends.max

    def halved(numbers: np.ndarray) -> np.ndarray:
        seen.append(numbers.size)
        return numbers.astype(np.float64) * 0.5 - 7

    seen: list[int] = []
    assert np.array_equal(_by_table(halved, stored), halved(stored))
    assert seen == [2 ** (8 * stored.itemsize), stored.size]
    assert _by_table(lambda numbers: numbers, stored) is stored


def test_palettes_frames_and_ybr_become_colours() -> None:
    assert read(dicom_file("examples_palette.dcm")).shape[0] == 3
    run = read(dicom_file("examples_ybr_color.dcm"))
    assert run.meta["kind"] == "frames" and run.shape == (3, 240, 320, 30) and run.dtype == torch.uint8


def test_arrays_are_taken_by_their_shape() -> None:
    assert read(np.zeros((20, 30), np.uint8)).shape == (1, 20, 30)
    assert read(np.zeros((20, 30, 3), np.uint8)).shape == (3, 20, 30)
    assert read(torch.zeros(4, 20, 30)).shape == (4, 20, 30)
    assert read(torch.zeros(1, 20, 30, 40)).meta["kind"] == "volume"
    assert read(np.zeros((20, 30), bool)).dtype == torch.uint8


def test_npy_files_are_arrays(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1, 9, 10, 11))
    np.save(tmp_path / "v.npy", values)
    assert_close(read(tmp_path / "v.npy").numpy(), values.astype(np.float32))


def test_the_transform_and_its_dictionary_form_read_too() -> None:
    path = dicom_file("CT_small.dcm")
    assert torch.equal(Readd("image")({"image": path})["image"], Read()(path))


# What is refused ------------------------------------------------------------------------------------------


def huge_png(path: Path, side: int) -> Path:
    """A valid PNG header of side x side pixels with next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def refused(source: object, message: str, **options: object) -> None:
    """`read` raises ValueError with `message`, in one line of decent length."""
    with pytest.raises(ValueError, match=message) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 420


def test_missing_empty_and_unknown_files(tmp_path: Path) -> None:
    refused(tmp_path / "no.png", r"no\.png does not exist, but a file or folder is expected: check the path")
    for name in ("e.png", "e.dcm", "e.nii.gz", "e.npy", "e.tif"):
        (tmp_path / name).touch()
        refused(tmp_path / name, rf"{re.escape(name)} is empty \(0 bytes\), but an image is expected")
    (tmp_path / "notes.docx").write_bytes(b"text")
    refused(tmp_path / "notes.docx", r"notes\.docx has an unknown suffix '\.docx', but NIfTI .* is expected")


def test_folders_without_images(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no images among its 0 files, but a DICOM series or pictures .* name the folder")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, r"holds no images among its 1 files")
    (tmp_path / "plan.dcm").write_bytes(Path(dicom_file("rtplan.dcm")).read_bytes())
    refused(tmp_path, r"holds no images: its 1 DICOM files have no pixels")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "dcm", "nii", "nii.gz", "npy"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    whole, short = tmp_path / f"whole.{kind}", tmp_path / f"short.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 12)).astype(np.uint8)
    if kind == "dcm":
        whole = Path(dicom_file("CT_small.dcm"))
    elif kind.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), whole)
    elif kind == "npy":
        np.save(whole, noise[None])
    else:
        Image.fromarray(noise[..., :3]).save(whole)
    content = whole.read_bytes()
    short.write_bytes(content[: int(len(content) * share)])
    refused(short, rf"short\.{re.escape(kind)} .*(cannot be read as|holds no pixels).*")


def test_rubbish_under_a_good_name(tmp_path: Path) -> None:
    for name in ("r.png", "r.tif", "r.dcm", "r.nii", "r.nii.gz", "r.npy"):
        (tmp_path / name).write_bytes(b"rubbish" * 99)
        refused(tmp_path / name, rf"{re.escape(name)} (cannot be read as|holds no pixels)")
    (tmp_path / "z.nii.gz").write_bytes(gzip.compress(b"rubbish" * 99))
    refused(tmp_path / "z.nii.gz", r"z\.nii\.gz cannot be read as NIfTI")


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "o.npy", r"o\.npy cannot be read as NPY \(Object arrays cannot be loaded")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf(tmp_path: Path, bad: float) -> None:
    values = np.zeros((1, 12, 12, 12), np.float32)
    values[0, 3, 4, 5] = bad
    np.save(tmp_path / "n.npy", values)
    refused(tmp_path / "n.npy", r"n\.npy has 1 values that are NaN or Inf.*nonfinite=0\.0")
    assert float(read(tmp_path / "n.npy", nonfinite=0.0).abs().max()) == 0
    refused(values[:, :, :, 5], r"image has 1 pixels that are NaN or Inf")


def test_too_small_and_too_large(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    refused(tmp_path / "dot.png", r"dot\.png has 1x1 pixels, but each side needs at least 8")
    for side, what in ((20_000, r"400,?000,?000 pixels"), (5_000, r"5000x5000 pixels")):
        refused(huge_png(tmp_path / "huge.png", side), rf"huge\.png has {what}, but at most 20,")
    refused(
        torch.zeros(1, 1, 1).expand(1, 20_000, 20_000), r"20000x20000 pixels.*into tiles \(histopathology\)"
    )
    header = pydicom.dcmread(dicom_file("CT_small.dcm"))
    header.Rows = header.Columns = 20_000
    header.save_as(tmp_path / "huge.dcm")
    refused(tmp_path / "huge.dcm", r"huge\.dcm has 20000x20000 pixels, but at most 20,000,000")


def test_a_header_that_promises_too_much_is_not_believed(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "h.nii")
    content = bytearray((tmp_path / "h.nii").read_bytes())
    content[42:48] = struct.pack("<3h", 30_000, 30_000, 30_000)
    (tmp_path / "h.nii").write_bytes(content)
    refused(tmp_path / "h.nii", r"h\.nii says its shape is \(30000, 30000, 30000\), but 1 to 500,000,000")


@pytest.mark.parametrize("channels", [2, 5])
def test_wrong_channel_counts(tmp_path: Path, channels: int) -> None:
    np.save(tmp_path / "c.npy", np.zeros((channels, 32, 32), np.uint8))
    refused(tmp_path / "c.npy", rf"c\.npy has {channels} channels, shape .*, but 1 or 3 or 4")


def test_too_many_dimensions() -> None:
    refused(torch.zeros(2, 3, 16, 16), r"image is 4-D, shape \(2, 3, 16, 16\), where a 3-D picture .* one by")
    refused(torch.zeros(1, 1, 9, 9, 9), r"image has 5 dimensions, shape \(1, 1, 9, 9, 9\)")


def test_what_is_no_number_or_no_image() -> None:
    refused(np.array([["a"]]), r"values of type <U1 came, but whole or real numbers are expected")
    refused(torch.zeros(1, 9, 9, dtype=torch.complex64), r"complex64 came, but real numbers are expected")
    refused([1, 2], r"a list came, but a path, an array or a tensor is expected")
    refused(torch.ones(1, 0, 9, 9), r"image is empty, shape \(1, 0, 9, 9\), but pixels are expected")
    refused(dicom_file("rtplan.dcm"), r"rtplan\.dcm holds no pixels \(RTPLAN\), but an image is expected")


def test_series_that_do_not_make_a_volume(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        folder.mkdir()
    refused(series(folders[0], 6, skip=(3,)), r"2\.50 to 5\.00 mm apart, but even steps are expected")
    series(folders[1])
    (folders[1] / "other.dcm").write_bytes(Path(dicom_file("CT_small.dcm")).read_bytes())
    refused(folders[1], r"holds 2 DICOM series, but one is expected: put each in its own folder")
    short = series(folders[2]) / "002.dcm"
    short.write_bytes(short.read_bytes()[:-400])
    refused(folders[2], r"002\.dcm cannot be read as DICOM \(.*\): copy it again")
    Image.new("L", (16, 12)).save(folders[3] / "a.png")
    Image.new("L", (16, 13)).save(folders[3] / "b.png")
    refused(folders[3], r"holds pictures of 2 shapes.*pass the pictures one by one")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_slices_are_read_from_their_files_when_their_turn_comes(syntax: UID, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    stored = chance.integers(0, 4000, (4, 80, 90), dtype=np.int16)  # more than a header holds at once
    for i, path in enumerate(sorted(series(tmp_path, 4).iterdir())):
        header = pydicom.dcmread(path)
        header.Rows, header.Columns = stored.shape[1:]
        header.PixelData = stored[i].tobytes()
        header.ImagePositionPatient = [0.0, 0.0, float(i)]
        header["PixelData"].VR = "OW"
        if syntax == RLELossless:
            header.compress(RLELossless)
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path)
    volume = read(tmp_path)
    assert np.array_equal(volume[0].numpy().transpose(2, 1, 0), stored.astype(np.float32) - 1024)


def test_frames_at_one_place_are_a_cine(tmp_path: Path) -> None:
    run = read(series(tmp_path, 4, spacing=0.0, backwards=True))
    assert run.meta["kind"] == "frames" and run[0, 0, 0].tolist() == [-21.0, -22.0, -23.0, -24.0]
