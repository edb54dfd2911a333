# SPDX-License-Identifier: Apache-2.0
"""What a server allows, and the one exception with which it says no. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many there may be.

    Args:
        body: bytes of a request.
        upload: bytes of images that are put into the panel at once.
        upload_seconds: a request must have come in whole by then.
        seconds: from the end of a request to its answer, waiting included.
        running: answers that are made side by side.
        waiting: answers that may wait for a place, and drawings likewise; more get 429.
        messages: of a dialogue.
        images: in a dialogue.
        pixels: of an image that comes in.
        voxels: of a volume that comes in.
        words: tokens of an answer at most, and what is taken where a request names none.
        choices: answers or images of one request.
        steps: network evaluations of an image.
        kept: images that the panel keeps; the one that was longest unused goes first.
        kept_bytes: of these, in memory.
    """

    body: int = 32 * 2**20
    upload: int = 256 * 2**20
    upload_seconds: float = 60.0
    seconds: float = 300.0
    running: int = 8
    waiting: int = 64
    messages: int = 256
    images: int = 32
    pixels: int = 50_000_000
    voxels: int = 100_000_000
    words: int = 1024
    choices: int = 8
    steps: int = 200
    kept: int = 12
    kept_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits got {name}={value}, expected above 0: raise it.")


class Refused(Exception):
    """A request that gets no answer, and why, in one sentence.

    Args:
        status: of HTTP.
        param: the field that is meant.
        code: a word for programs.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """As OpenAI's clients read it."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message.encode("utf8", "replace").decode()
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}
