# SPDX-License-Identifier: Apache-2.0
"""The parts of a network by the names of its parameters, and which of them learn.

Freezing, rates and adapters are patterns over parameter names; a part's name is a pattern too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

PARTS = ("vision", "connector", "understanding", "generation", "heads", "autoencoder")
UNDERSTANDING = ("vision", "connector", "understanding", "decoder.embed.*")


def part_of(name: str) -> str:
    """The part that a parameter belongs to.

    "heads" is all that exists once around the experts: embedding and head of words, the latent projections
    and the time embedding.
    """
    first = name.split(".")[0]
    if first in ("vision", "connector", "autoencoder"):
        return first
    if first == "decoder":
        for expert in ("understanding", "generation"):
            if f".{expert}." in name:
                return expert
    return "heads"


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter is of one of the parts, or matches one of the patterns ("decoder.layers.0.*")."""
    return any(part_of(name) == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def freeze(network: nn.Module, frozen: Sequence[str] = ()) -> list[str]:
    """Let everything learn but what is `frozen`, and the autoencoder; returns the names of what learns.

    Of a network with adapters (`training.adapters`) they alone learn.

    Args:
        frozen: parts of `PARTS`, or patterns over names of parameters.

    Raises:
        ValueError: a pattern that fits no parameter, or nothing is left to learn.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in frozen:
        if not any(fits(name, [pattern]) for name in names):
            raise ValueError(
                f"frozen has {pattern!r}, which fits no parameter of this network, expected a part "
                f"({', '.join(PARTS)}) or a pattern like 'decoder.layers.0.*': correct it."
            )
    learning, adapted = [], any(".lora_" in name for name in names)
    for name, p in network.named_parameters():
        p.requires_grad_(not fits(name, [*frozen, "autoencoder"]) and (".lora_" in name or not adapted))
        if p.requires_grad:
            learning.append(name)
    if not learning:
        raise ValueError(f"frozen={list(frozen)} leaves nothing to learn: freeze less.")
    return learning


def understanding(network: nn.Module) -> tuple[str, ...]:
    """What gets no gradient where understanding states are detached (the reference's `freeze_und`).

    An embedding that is tied to the head still learns as the head.
    """
    names = [name for name, _ in network.named_parameters()]
    untied = any(name.startswith("decoder.head.") for name in names)
    found = UNDERSTANDING if untied else UNDERSTANDING[:-1]
    return tuple(pattern for pattern in found if any(fits(name, [pattern]) for name in names))


def count_parameters(network: nn.Module, *, learning: bool = False) -> dict[str, int]:
    """Parameters of each part; with `learning`, only those that have a gradient."""
    counts = dict.fromkeys(PARTS, 0)
    for name, p in network.named_parameters():
        if p.requires_grad or not learning:
            counts[part_of(name)] += p.numel()
    return counts
