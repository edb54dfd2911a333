# SPDX-License-Identifier: Apache-2.0
"""What OpenAI's clients send -> the turns of a dialogue; data URLs -> pictures.

Pictures go through the recipes of their kind, as on the command line, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from monai.data import MetaTensor
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from monai_unimedvl.sequence import Turn
from monai_unimedvl.serve.limits import Limits, Refused
from monai_unimedvl.serve.schema import Assistant, ImagePart, Message
from monai_unimedvl.transforms.choosing import Choice, choose

SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/jpg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
    "application/dicom": ".dcm",
}
_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)(?:;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)


def dialogue_of(messages: Sequence[Message], limits: Limits, square: bool) -> list[Turn]:
    """The turns of a dialogue; what a system message says comes first, in a turn of the user's.

    Args:
        square: pictures are framed as squares, for a model that knows nothing else.

    Raises:
        Refused: too long, an image that is none, no word of the user at the end.
    """
    if len(messages) > limits.messages:
        raise Refused(
            f"{len(messages)} messages came, at most {limits.messages} are read: shorten the dialogue.",
            param="messages",
        )
    turns: list[Turn] = []
    seen = 0
    for number, message in enumerate(messages):
        parts: list[str | Tensor] = []
        for place, part in enumerate(
            [message.content] if isinstance(message.content, str) else message.content
        ):
            if isinstance(part, ImagePart):
                seen += 1
                if seen > limits.images:
                    raise Refused(
                        f"More than {limits.images} images came: ask about fewer.", param="messages"
                    )
                where = f"messages[{number}].content[{place}]"
                parts += [
                    one.as_tensor() for one in pictures_of_url(part.image_url.url, limits, square, where)
                ]
            else:
                parts.append(part if isinstance(part, str) else part.text)
        turns.append(Turn("assistant" if isinstance(message, Assistant) else "user", parts))
    if turns[-1].role != "user":
        raise Refused("The last message is the assistant's, expected the user's: add one.", param="messages")
    return turns


def pictures_of_url(url: str, limits: Limits, square: bool, where: str) -> list[MetaTensor]:
    """The picture (3, H, W) in [0, 1] in a data URL; of a DICOM volume its middle slice.

    Raises:
        Refused: another kind of URL, not base64, no image.
    """
    head = _URL.match(url[:200])
    if head is None:
        raise Refused(
            f"{where} is no data URL in base64, expected data:image/png;base64,...: put the image's bytes "
            "into it.",
            param=where,
        )
    kind = head[1].lower()
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{where} is not valid base64: encode the image again.", param=where) from error
    return pictures_of(content, kind, limits, square, where)


def pictures_of(content: bytes, kind: str, limits: Limits, square: bool, where: str) -> list[MetaTensor]:
    """The picture in the bytes of a file.

    Args:
        kind: its media type.

    Raises:
        Refused: a kind that is not read, or bytes that are no such image.
    """
    suffix = SUFFIXES.get(kind)
    if suffix is None:
        raise Refused(
            f"{where} is {kind[:60]}, expected one of {', '.join(SUFFIXES)}: convert it.", param=where
        )
    with tempfile.TemporaryDirectory(prefix="unimedvl-") as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        try:
            if suffix != ".dcm":
                check_size(path, limits, where)
            pictures, _ = choose(path, Choice(slice="middle", square=square))
        except ValueError as error:
            raise Refused(f"{where}: {error}".replace(f"{folder}/", ""), param=where) from error
    return pictures


def check_size(path: Path, limits: Limits, where: str) -> None:
    """Refuse a picture by its header, before its pixels are unpacked.

    Raises:
        Refused: too large, or no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if path.suffix == ".tiff":
            return  # kinds that only the reader behind knows, which has a limit of its own
        raise Refused(
            f"{where} is no image that can be read: send its file as it is.", param=where
        ) from error
    if width * height > limits.pixels:
        raise Refused(
            f"{where} has {width} x {height} pixels, at most {limits.pixels:,} are read: make it smaller.",
            param=where,
        )
