# SPDX-License-Identifier: Apache-2.0
"""Who may see whom, and which expert takes whom: five numbers a token, one rule, and the plan of a pack.

Order in memory is expert-major: first every token of the understanding expert, then those of the
generation expert, so that routing is two slices. `Plan.arrival` leads back to the order of reading.
  L tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

CAUSAL = -1  # the span of a token that belongs to no image


class Layout(NamedTuple):
    """Five numbers a token, each (L,): sample, order of arrival, rotary position, image span, noisy."""

    sample: Tensor
    order: Tensor
    position: Tensor
    span: Tensor
    noisy: Tensor

    def query(self) -> Layout:
        """The same with an extra axis (L, 1), to be set against keys (L,)."""
        return Layout(*(x.unsqueeze(-1) for x in self))


def visible(query: Layout, key: Layout) -> Tensor:
    """Which keys each query may attend to. The one rule of attention."""
    same_sample = query.sample == key.sample
    earlier = key.order <= query.order
    same_image = (query.span == key.span) & (key.span != CAUSAL)
    return same_sample & (same_image | (earlier & ~key.noisy))


class Routes(NamedTuple):
    """How many tokens each expert has; the understanding tokens come first in memory.

    `detach_understanding` is the reference's `freeze_und`: no gradient through understanding states.
    """

    understanding: int
    generation: int
    detach_understanding: bool = False


class Part(NamedTuple):
    """A stretch of a sample whose queries see the same earlier parts: one image, or the words between two.

    `sees` are the numbers of the earlier parts that it sees whole; `mask` is None (itself whole too),
    "causal" (nothing earlier), or (length, keys) bool over what it sees and then itself.
    """

    length: int
    sees: tuple[int, ...]
    mask: Tensor | str | None


class Block(NamedTuple):
    """Samples that share one attention pattern: `count` of them, `length` new tokens each.

    `mask` is None (everything visible), "causal", or (length, length) bool. `parts` says the same as `mask`,
    part by part, so that what is hidden need not be computed; a sample of one part has none.
    """

    samples: tuple[int, ...]
    length: int
    mask: Tensor | str | None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What attention needs to know: layout (L,) in memory order, routes, and blocks in reading order.

    Args:
        arrival: (L,) memory places in the order of `blocks`; None when the two orders are the same.
        home: (L,) the inverse of `arrival`.
    """

    layout: Layout
    routes: Routes
    blocks: tuple[Block, ...]
    arrival: Tensor | None
    home: Tensor | None
    next_position: dict[int, int]  # rotary position after this pack, by sample
