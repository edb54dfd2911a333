# SPDX-License-Identifier: Apache-2.0
"""Videos through PyAV: the right frames, red first, upright, and bad files refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_unimedvl import recipe
from monai_unimedvl.transforms import video
from monai_unimedvl.transforms.read import read
from monai_unimedvl.transforms.video import read_video

av = pytest.importorskip("av", reason="PyAV is not installed")


def film(
    path: Path, count: int, size: tuple[int, int] = (96, 64), codec: str = "mpeg4", gop: int = 12
) -> Path:
    """`count` frames: the number is the green, the left half is red, a white square is top left."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.gop_size = *size, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 4_000_000
        for n in range(count):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            pixels[..., 1] = n * 200 // count
            pixels[:, : size[0] // 2, 0] = 220
            pixels[:16, :16] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize(("ending", "codec"), [(".mp4", "mpeg4"), (".avi", "mjpeg"), (".mkv", "mpeg4")])
def test_the_wanted_frames_come_red_first_and_upright(tmp_path: Path, ending: str, codec: str) -> None:
    path = film(tmp_path / f"scope{ending}", 40, codec=codec)
    run = read_video(path, 8)
    assert run.shape == (3, 64, 96, 8) and run.dtype == torch.uint8
    assert run.meta["numbers"] == [2, 7, 12, 17, 22, 27, 32, 37] and run.meta["available"] == 40
    assert run.meta["seconds"][:2] == pytest.approx([2 / 25, 7 / 25], abs=1e-3)
    shown = run.as_tensor().float()
    assert float(shown[0, 20:, 4:40].mean()) > 150 > 60 > float(shown[2, 20:, 4:40].mean()), "red first"
    assert float(shown[:, 2:12, 2:12].mean()) > 230, "the mark is top left"
    greens = shown[1, 40:60, 60:90].mean((0, 1))
    assert (greens - torch.tensor([n * 200 // 40 for n in run.meta["numbers"]])).abs().max() < 12


def test_frames_far_apart_are_reached_by_jumps(tmp_path: Path) -> None:
    path = film(tmp_path / "long.mp4", 400, (64, 48))
    run = read_video(path, 4)
    assert run.meta["numbers"] == [50, 150, 250, 350]
    greens = run.as_tensor().float()[1, 30:45, 40:60].mean((0, 1))
    assert (greens - torch.tensor([25.0, 75.0, 125.0, 175.0])).abs().max() < 8


def test_a_recipe_says_which_frames_of_the_film_it_took(tmp_path: Path) -> None:
    path = film(tmp_path / "scope.mp4", 40)
    pictures = recipe("endoscopy", count=2)(path)
    assert [one.meta["source"]["index"] for one in pictures] == [10, 30]
    assert [one.meta["source"]["count"] for one in pictures] == [40, 40]
    sampled = recipe("endoscopy", policy="all", frames=5)(path)
    assert [one.meta["source"]["index"] for one in sampled] == [4, 12, 20, 28, 36]


def test_bad_videos_are_refused_with_their_name(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mkv", 30).read_bytes()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.mp4").write_bytes(film(tmp_path / "x.mp4", 30).read_bytes()[:3000])
    (tmp_path / "text.avi").write_text("no film")
    for name in ("noise.mp4", "cut.mp4", "text.avi"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as video"):
            read(tmp_path / name)
    (tmp_path / "short.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    assert read(tmp_path / "short.mkv").meta["available"] < 30, "what is there of a stream is read"


def test_more_frames_than_memory_holds_are_sampled_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "many.mp4", 90, (32, 32))
    monkeypatch.setattr(video, "MAX_VALUES", 21 * 3 * 32 * 32)
    with pytest.raises(ValueError, match=r"many\.mp4 holds 90 frames of 32x32 pixels, but 21 fit.*frames=21"):
        read_video(path)
    assert read_video(path, 50).shape[-1] == 21


@pytest.mark.parametrize("kind", ["mp4", "bare stream"])
def test_a_film_inside_a_dicom_file_is_read(kind: str, tmp_path: Path) -> None:
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import MPEG2MPML, MPEG4HP41, VideoEndoscopicImageStorage, generate_uid

    bare = kind == "bare stream"
    made = film(tmp_path / ("film.m2v" if bare else "film.mp4"), 20, codec="mpeg2video" if bare else "mpeg4")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = MPEG2MPML if bare else MPEG4HP41
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = VideoEndoscopicImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.Modality, header.PatientName = "ES", "Doe^Jane"
    header.Rows, header.Columns, header.NumberOfFrames, header.SamplesPerPixel = 64, 96, 20, 3
    header.PhotometricInterpretation, header.BitsAllocated = "YBR_PARTIAL_420", 8
    header.PixelData = encapsulate([made.read_bytes()])
    header["PixelData"].is_undefined_length = True
    header.save_as(tmp_path / "scope.dcm", enforce_file_format=True)
    run = read(tmp_path / "scope.dcm", frames=5)
    assert run.shape == (3, 64, 96, 5) and run.meta["modality"] == "ES"
    assert run.meta["numbers"] == [2, 6, 10, 14, 18]
    shown = run.as_tensor().float()
    assert float(shown[0, 20:, 4:40].mean()) > 150 > 60 > float(shown[2, 20:, 4:40].mean())
    greens = shown[1, 40:60, 60:90].mean((0, 1))
    assert (greens - torch.tensor([n * 200 // 20 for n in run.meta["numbers"]])).abs().max() < 14
