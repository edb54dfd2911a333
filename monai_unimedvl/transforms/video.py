# SPDX-License-Identifier: Apache-2.0
"""Frames of a video through PyAV (FFmpeg's libraries): evenly spread, red first, turned as players do.

Only the wanted frames are kept, so a film of an hour takes the memory of its sample. Where wanted frames lie
far apart, those between are jumped over from key frame to key frame.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_unimedvl.packages import needed
from monai_unimedvl.transforms.image import MAX_IMAGE_PIXELS, too_large

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
MAX_VALUES = 500_000_000  # bytes of the frames that are kept
FAR = 48  # frames; a longer way to the next wanted one is jumped
PATIENCE = (10.0, 10.0)  # seconds to open and to read


def read_video(path: Path, frames: int | None = None, content: bytes | None = None) -> MetaTensor:
    """(3, H, W, T) uint8 with `meta["numbers"]`, the place of each frame in the film of `meta["available"]`.

    Args:
        frames: at most that many, evenly spread; None takes all.
        content: the film itself, where it is a part of the file (DICOM).

    Raises:
        MissingPackage: PyAV is not installed.
        ValueError: no film in the file, too large, or cut short.
    """
    av: Any = needed("av", "A video", "video")

    def opened() -> Any:
        return av.open(str(path) if content is None else BytesIO(content), timeout=PATIENCE)

    with opened() as container:
        if not container.streams.video:
            raise ValueError(f"{path.name} holds no pictures, but a video is expected: choose another file.")
        stream = container.streams.video[0]
        width, height = int(stream.codec_context.width), int(stream.codec_context.height)
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(too_large(path.name, f"frames of {width}x{height} pixels"))
        packets = [packet.pts for packet in container.demux(stream) if packet.size]
        base = float(stream.time_base or 0)
    times = sorted(pts for pts in packets if pts is not None)
    if len(times) < len(packets):
        times, base = list(range(len(packets))), 0.0  # a bare stream: frames are counted
    with opened() as container:
        stream = container.streams.video[0]
        room = max(1, MAX_VALUES // (3 * max(width * height, 1)))
        if not times:
            raise ValueError(f"{path.name} holds a video without frames: copy or export it again.")
        if frames is None and len(times) > room:
            raise ValueError(
                f"{path.name} holds {len(times)} frames of {width}x{height} pixels, but {room} fit at once: "
                f"take a sample with frames={min(room, 64)}."
            )
        count = min(frames or len(times), room, len(times))
        numbers = [(2 * i + 1) * len(times) // (2 * count) for i in range(count)]
        pictures = _decoded(container, stream, times if base else None, numbers)
    if len(pictures) < len(numbers):
        raise ValueError(
            f"{path.name} ends after {len(pictures)} of {len(numbers)} wanted frames: it may be cut short; "
            "copy it again."
        )
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError(f"{path.name} changes its frame size on the way: cut it into parts of one size.")
    values = torch.from_numpy(np.stack([picture.transpose(2, 0, 1) for picture in pictures], axis=-1))
    seconds = [round((times[n] - times[0]) * base, 6) for n in numbers]
    meta = {"kind": "frames", "numbers": numbers, "available": len(times), "seconds": seconds}
    return MetaTensor(values, meta=meta)


def _decoded(
    container: Any, stream: Any, times: list[int] | None, numbers: list[int]
) -> list[np.ndarray]:  # fmt: skip
    """The pictures (H, W, 3) of the frames `numbers` that are there; without times they are counted."""
    pictures: list[np.ndarray] = []
    if times is None:
        wanted = set(numbers)
        for here, frame in enumerate(container.decode(stream)):
            if here in wanted:
                pictures.append(_upright(frame))
            if here == numbers[-1]:
                break
        return pictures
    container.seek(times[0], stream=stream)
    decoder, here = container.decode(stream), 0
    for number in numbers:
        if number - here > FAR:
            container.seek(times[number], stream=stream)  # back to the key frame before it
            decoder = container.decode(stream)
        for frame in decoder:
            if frame.pts is None or frame.pts >= times[number]:
                pictures.append(_upright(frame))
                break
        here = number
    return pictures


def _upright(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8, red first, turned as the file's display matrix says."""
    quarter_turns = round(float(getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))
