# SPDX-License-Identifier: Apache-2.0
"""Say in one sentence what does not fit between a network and weights, by part, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

PARTS_IN_WORDS = (
    ("generation expert", r"decoder\..*\.generation\."),
    ("understanding expert", r"decoder\..*\.understanding\."),
    ("words (embedding and head)", r"decoder\.(embed|head)\."),
    ("vision", r"vision\."),
    ("connector", r"connector\."),
    ("position tables", r"(view|latent)_table$"),
    ("latent projections", r"(time_embed|latent_(in|out|gate)|tones|details|strokes)\.|latent_variance$"),
    ("autoencoder", r"autoencoder\."),
    ("elsewhere", r""),
)
NAMED = 2  # names given for each part; the rest is counted

# Where a size of the config shows: name, axis.
SIZES = {
    "vocab_size": ("decoder.embed.weight", 0),
    "hidden_size": ("decoder.embed.weight", 1),
    "mlp_dim": ("decoder.layers.0.mlp.understanding.gate.weight", 0),
    "width of the keys": ("decoder.layers.0.attention.k.understanding.weight", 0),
    "head size": ("decoder.layers.0.attention.q_norm.understanding.weight", 0),
    "latent token": ("latent_in.weight", 1),
    "vision.hidden_size": ("vision.norm.weight", 0),
    "vision.mlp_dim": ("vision.layers.0.fc1.weight", 0),
    "vision patch": ("vision.patch.weight", 1),
    "vision.grid_side squared": ("vision.position.weight", 0),
    "latent_side squared": ("latent_table", 0),
    "autoencoder width": ("autoencoder.net.encoder.conv_in.weight", 0),
}


def check(expected: Shapes, found: Shapes, source: str) -> None:
    """Raise ValueError unless names and shapes agree.

    Args:
        expected: of the network.
        found: of the weights.
        source: what the weights are called in the message.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [name for name in expected if name in found and found[name] != expected[name]]
    if not missing and not unexpected and not misshapen:
        return
    shown = {name: f"{name} {found[name]} for {expected[name]}" for name in misshapen}
    faults = [
        f"{len(names)} {fault} ({_by_part(names, shown)})"
        for fault, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    mend = _mend(expected, found, missing, unexpected, bool(misshapen))
    raise ValueError(f"The weights of {source} do not fit the network: {'; '.join(faults)}: {mend}.")


def part_of(name: str) -> str:
    """The part of the network that a weight belongs to."""
    return next(part for part, pattern in PARTS_IN_WORDS if re.match(pattern, name))


def _by_part(names: Iterable[str], shown: Mapping[str, str]) -> str:
    groups: dict[str, list[str]] = {part: [] for part, _ in PARTS_IN_WORDS}
    for name in names:
        groups[part_of(name)].append(shown.get(name, name))
    told = []
    for part, group in groups.items():
        if group:
            more = f", {len(group) - NAMED} more" if len(group) > NAMED else ""
            told.append(f"{part} {len(group)}: {', '.join(group[:NAMED])}{more}")
    return "; ".join(told)


def _mend(expected: Shapes, found: Shapes, missing: list[str], unexpected: list[str], misshapen: bool) -> str:
    """What to do, by the likeliest cause."""
    if misshapen:
        told = []
        for size, (name, axis) in SIZES.items():
            if name in found and name in expected and len(found[name]) == len(expected[name]):
                here, there = found[name][axis], expected[name][axis]
                told += [f"{size} {here} and not {there}"] if here != there else []
        sizes = f"the weights have {', '.join(told)}; " if told else ""
        return f"{sizes}take config and weights from one checkpoint"
    parts = {part_of(name) for name in missing}

    def gone(part: str) -> bool:
        return not any(part_of(name) == part for name in found)

    if found and not unexpected and "decoder.embed.weight" in missing:
        return "if this is a fine-tune of some weights, give base=, the folder that it was trained from"
    if parts == {"autoencoder"} and gone("autoencoder"):
        return "put ae.safetensors beside them, or load them for answers, with parts=weights.ANSWERING"
    if "generation expert" in parts and gone("generation expert"):
        return (
            "this checkpoint only understands; load it for answers, with parts=weights.ANSWERING, or take "
            "one that has both experts"
        )
    if not missing and unexpected:
        return "the checkpoint holds more than the config says; take config and weights from one checkpoint"
    return "fetch the checkpoint again, or save it whole"
