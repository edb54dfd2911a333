# SPDX-License-Identifier: Apache-2.0
"""A server on loopback for tests, and what a client sends."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.serve import Limits, Service
from monai_unimedvl.tokenizer import Tokenizer

NAME = "tiny"


def service_of(network: UniMedVL, tokenizer: Tokenizer, **limits: Any) -> Service:
    return Service(
        network, tokenizer, name=NAME, digest="0" * 64, limits=Limits(**{"words": 60, **limits})
    )  # fmt: skip


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The app on a free port of loopback, in a thread; its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def png(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    """A coloured picture of `size` (width, height)."""
    values = torch.randint(0, 255, (*reversed(size), 3), generator=torch.Generator().manual_seed(seed))
    stream = io.BytesIO()
    Image.fromarray(values.to(torch.uint8).numpy()).save(stream, "PNG")
    return stream.getvalue()


def shown(content: bytes, kind: str = "image/png") -> dict[str, Any]:
    """A picture as a part of a message."""
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: str | bytes) -> dict[str, Any]:
    """A turn of the user."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": p} if isinstance(p, str) else shown(p) for p in parts],
    }
