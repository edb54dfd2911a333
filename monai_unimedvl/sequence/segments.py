# SPDX-License-Identifier: Apache-2.0
"""What people say and show (`Turn`, `Prompt`) and what the model reads and draws (`Text`, `View`, `Canvas`).

n words   h, w tokens down and across   p view patch   q latent patch   C latent channels
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

AROUND = 2  # tokens: the marks where a segment begins and where it ends


class Marks(NamedTuple):
    """Ids of the four control tokens, in the order of BAGEL's `new_token_ids`."""

    text_start: int
    text_end: int
    image_start: int
    image_end: int


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue: who speaks and what, text and images (3, H, W) in [0, 1] in order."""

    role: str
    parts: list[str | Tensor]

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant"):
            raise ValueError(f"Turn got role {self.role!r}, expected 'user' or 'assistant': use one of them.")


Prompt = Sequence["str | Tensor | Turn"]  # a user turn, or a dialogue of `Turn`s


@dataclass(frozen=True)
class Text:
    """Words: ids (n,) without marks; `pack` adds text_start and text_end. A dropped text leaves no trace."""

    ids: Tensor
    loss: bool = False
    dropped: bool = False

    @property
    def tokens(self) -> int:
        """Without the marks around them."""
        return len(self.ids)


@dataclass(frozen=True)
class View:
    """An image to understand: patches (h*w, p*p*3) in [-1, 1], each in the order row, column, channel.

    A dropped view leaves no tokens, but its place: the next position moves by one.

    Args:
        kept: (n,) numbers of the patches that leave a token, ascending; None for all. The vision encoder sees
            all of them: a token knows what was dropped around it.
    """

    patches: Tensor
    grid: tuple[int, int]
    dropped: bool = False
    kept: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Without the marks around them."""
        return math.prod(self.grid) if self.kept is None else len(self.kept)


@dataclass(frozen=True)
class Canvas:
    """An image in latent space: a clean condition, or a noisy target that only itself can read.

    Args:
        grid: latent tokens down and across.
        latents: (h*w, q*q*C); None until `UniMedVL.encode` has turned `image` into them.
        image: (3, H, W) in [-1, 1], or None.
        noisy: it is being drawn; it takes no position, and no other token ever sees it.
        time: 0 is the image, 1 is noise.
        base: (h*w, C) latents that the drawing may start from; read by networks that predict images.
        joined: it is drawn together with the noisy canvas before it, as the next slice of one volume: both
            see each other, and its rotary position is one further.
        given: later drawings may start from it; not so what was drawn in this dialogue itself.
    """

    grid: tuple[int, int]
    latents: Tensor | None = None
    image: Tensor | None = None
    noisy: bool = False
    time: float = 0.0
    dropped: bool = False
    base: Tensor | None = None
    joined: bool = False
    given: bool = True

    @property
    def tokens(self) -> int:
        """Without the marks around them."""
        return math.prod(self.grid)

    def __post_init__(self) -> None:
        if self.joined and not self.noisy:
            raise ValueError(
                "Canvas got joined=True with noisy=False, but only drawings are joined: drop one."
            )


Segment = Text | View | Canvas
Samples = Sequence[Sequence[Segment]]


def count_tokens(segments: Iterable[Segment]) -> int:
    """Tokens that segments leave in a pack, marks included; dropped ones leave none."""
    return sum(segment.tokens + AROUND for segment in segments if not segment.dropped)
