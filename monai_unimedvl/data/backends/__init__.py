# SPDX-License-Identifier: Apache-2.0
"""Models that judge or write for the data pipeline: what they promise, and where they come from.

    writer = open_writer("folder:/models/medgemma")           # a transformers model on this machine
    writer = open_writer("http://127.0.0.1:8000/v1#medgemma")  # an OpenAI-compatible endpoint
    writer = open_writer("replay:answers.jsonl")               # what was answered before, and nothing else

A `Writer` answers a prompt, with or without an image; a `Scorer` says how well image and text, or two texts,
fit, in [0, 1]. `Remembered` keeps every answer in a file, so that a killed run asks nothing twice.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

KINDS = "folder:PATH, http(s)://HOST/v1#MODEL or replay:FILE.jsonl"


@runtime_checkable
class Writer(Protocol):
    """Writes texts; `captioner` and language model are the same thing with and without an image."""

    @property
    def name(self) -> str:
        """Of the model, as records say who wrote their words."""

    def write(self, prompt: str, image: Tensor | None = None, *, count: int = 1, seed: int = 0) -> list[str]:
        """`count` answers to a prompt about an image (3, H, W) in [0, 1].

        Raises:
            ValueError: the model cannot be asked.
        """


@runtime_checkable
class Scorer(Protocol):
    """Says how well two things fit, in [0, 1]."""

    @property
    def name(self) -> str:
        """Of the model."""

    def image_text(self, image: Tensor, texts: Sequence[str]) -> list[float]:
        """How well each text fits the image (3, H, W) in [0, 1]."""

    def text_text(self, text: str, others: Sequence[str]) -> list[float]:
        """How near each of the others comes to a text."""


def open_writer(place: str, *, device: str = "cpu", max_tokens: int = 512) -> Writer:
    """A writer by its place; see the module.

    Raises:
        ValueError: a place of no known kind, or nothing there.
    """
    kind, rest = _kind(place)
    if kind != "folder":
        return _elsewhere(kind, rest, max_tokens=max_tokens)
    from monai_unimedvl.data.backends.local import LocalWriter

    return LocalWriter(rest, device=device, max_tokens=max_tokens)


def open_scorer(place: str, *, device: str = "cpu") -> Scorer:
    """A scorer by its place; see the module.

    Raises:
        ValueError: a place of no known kind, or nothing there.
    """
    kind, rest = _kind(place)
    if kind != "folder":
        return _elsewhere(kind, rest)
    from monai_unimedvl.data.backends.local import LocalScorer

    return LocalScorer(rest, device=device)


def _elsewhere(kind: str, rest: str, **options: Any) -> Any:
    """What both writes and scores: an endpoint, which takes the options, or remembered answers."""
    if kind == "replay":
        from monai_unimedvl.data.backends.replay import Remembered

        return Remembered(rest)
    from monai_unimedvl.data.backends.http import Endpoint

    return Endpoint(rest, **options)


def digest(image: Tensor | None) -> str:
    """16 hex digits of an image's pixels as 8 bits; "" of none."""
    if image is None:
        return ""
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + _bytes(image).tobytes()).hexdigest()[:16]


def data_url(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a PNG inside a URL."""
    stream = io.BytesIO()
    Image.fromarray(_bytes(image)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture_of(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] as processors take it."""
    return Image.fromarray(_bytes(image))


def _bytes(image: Tensor):  # type: ignore[no-untyped-def]
    whole = torch.as_tensor(image).detach().float().clamp(0, 1)
    return (whole.movedim(0, -1) * 255).round().byte().contiguous().numpy()


def _kind(place: str) -> tuple[str, str]:
    for start in ("folder:", "replay:"):
        if place.startswith(start) and len(place) > len(start):
            return start[:-1], place.removeprefix(start)
    if place.startswith(("http://", "https://")):
        return "http", place
    raise ValueError(f"a model at {place!r} came, expected {KINDS}: name it so.")
