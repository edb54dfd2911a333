# SPDX-License-Identifier: Apache-2.0
"""A guided drawing of 64 to 1024 latent tokens: ours against a plain transcription of the public scheme.

- From words, as the public `gen_image` does it: 60 tokens, none without the last words, and the same 60 again
  as the context "without images". It runs all three; we see that the third repeats the first.
- An edit: 300 tokens, 240 without the last words, 60 without images: three different branches.

The public code runs the branches one after the other, each with its own deep copy of the cache, sorts tokens
to experts anew in every projection, and copies past and new keys into a fresh tensor in every layer. Written
here from a description of it; both use the same weights and must draw the same. A unit is one step, or with
an interval of guidance one whole drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from _timing import HEAD, Side, Watch, arguments, load_average, report, rows, take_turns
from torch import Tensor, nn

from monai_unimedvl import flow
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Context, flow_steps
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Canvas, Marks, Text

SHIFT = 3.0
INTERVAL = (0.4, 1.0)  # with 6 steps one of them lies outside, with the public 49 nine
KINDS = {
    "from words": Guidance(text=4.0, image=1.5),  # the public defaults
    "edit": Guidance(text=4.0, image=2.0, renorm="text_channel"),
}
MARKS = Marks(636, 637, 638, 639)
SHAPES: dict[str, tuple[dict[str, Any], dict[int, int]]] = {  # sizes; latent tokens a side: rounds
    "nano: hidden 160, 4 layers": (
        {"hidden_size": 160, "mlp_dim": 480, "num_layers": 4, "num_heads": 5, "num_kv_heads": 5},
        {8: 6, 16: 3},
    ),
    "hidden 512, 8 layers": (  # 27 M understanding parameters, as in the prototypes
        {"hidden_size": 512, "mlp_dim": 1408, "num_layers": 8, "num_heads": 8, "num_kv_heads": 2},
        {8: 3, 16: 2, 32: 1},
    ),
}


def network(shape: dict[str, Any], dtype: torch.dtype) -> UniMedVL:
    """Random weights that make a velocity of about the size of noise."""
    torch.manual_seed(0)
    made = from_config(
        {
            "decoder": {"vocab_size": 640, "rope_theta": 1e4, **shape},
            "vision": None,
            "autoencoder": {"kind": "patch", "patch": 8, "latent_channels": 96},
            "latent_patch": 1,
        }
    )
    nn.init.normal_(made.latent_out.weight, std=shape["hidden_size"] ** -0.5)
    return made.to(dtype).eval()


def read(network: UniMedVL, kind: str) -> Context:
    """The three contexts of a kind of drawing."""
    chance = torch.Generator().manual_seed(1)
    words = Text(torch.randint(0, 636, (58,), generator=chance))
    source = Canvas((14, 17), torch.randn(14 * 17, 96, generator=chance))
    marked: Any = SimpleNamespace(tokenizer=SimpleNamespace(marks=MARKS))
    context = Context(network, marked, samples=3)
    context.read([[words], [], [words]] if kind == "from words" else [[source, words], [source], [words]])
    assert context.cache.lengths == ([60, 0, 60] if kind == "from words" else [300, 240, 60])
    return context


def ours(
    fast: bool, context: Context, guidance: Guidance, noise: Tensor, steps: int, whole: bool,
    drawn: list[Tensor],
) -> Side:  # fmt: skip
    """Through `flow_steps`, as the inferers do; on plain or on fast layers."""
    layers, side_ = context.network.decoder.layers, int(len(noise) ** 0.5)
    ready = [layer.fast for layer in layers] if fast else [None] * len(layers)

    def side(tick: Callable[[], None]) -> None:
        for layer, one in zip(layers, ready, strict=True):
            layer.fast = one
        tick()
        loop = flow_steps(context, [(side_, side_)], guidance, steps=steps, shift=SHIFT, noise=[noise])
        for n, (_, latents) in enumerate(loop):
            if not whole or n + 1 == steps:
                tick()
            drawn[:] = latents

    return side


Past = list[tuple[Tensor, Tensor]]  # keys and values (N, K, E) of each layer


def theirs(
    context: Context, guidance: Guidance, noise: Tensor, steps: int, whole: bool, drawn: list[Tensor]
) -> Side:
    """A forward for each branch; outside of the interval one."""
    network, cache = context.network, context.cache
    pasts: list[Past] = []
    for s, n in enumerate(cache.lengths):
        layers = zip(cache.keys[:, s, :, :n], cache.values[:, s, :, :n], strict=True)
        pasts.append([(k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()) for k, v in layers])

    @torch.no_grad()
    def side(tick: Callable[[], None]) -> None:
        tick()
        contexts = [deepcopy(past) for past in pasts]
        x, times = noise, flow.schedule(steps, SHIFT).tolist()
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            branches = zip(contexts, cache.positions, (True, *guidance.uses(t)), strict=True)
            v = [velocity(network, x, t, past, at) if used else None for past, at, used in branches]
            x = flow.step(x, guidance.combine(*v), t, t_next)  # type: ignore[arg-type]
            if not whole or t_next == 0:
                tick()
        drawn[:] = [x]

    return side


def velocity(network: UniMedVL, x: Tensor, t: float, past: Past, position: int) -> Tensor:
    """The velocity (Z, C) of one branch: start mark, latents, end mark; all see each other and the past."""
    count = len(x)
    words, latents = torch.tensor([0, count + 1]), torch.arange(1, count + 1)
    dtype = network.decoder.embed.weight.dtype
    side = torch.arange(int(count**0.5))
    cells = torch.cartesian_prod(side, side) @ torch.tensor([network.latent_side, 1])
    width = network.decoder.embed.embedding_dim
    sequence = torch.zeros(count + 2, width, dtype=dtype)
    sequence[words] = network.decoder.embed(torch.tensor([MARKS.image_start, MARKS.image_end]))
    time = network.time_embed(torch.full((count,), t))
    sequence[latents] = network.latent_in(x.to(dtype)) + time + network.latent_table[cells].to(dtype)
    angle = position * network.decoder.rope_theta ** (-torch.arange(0, 1, 2 / network.decoder.head_size))
    angle = torch.cat([angle, angle]).expand(count + 2, 1, -1)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def routed(twins: Any, h: Tensor, *shape: int) -> Tensor:
        """Tokens sorted to the experts, and the results written back."""
        found = h.new_zeros(len(h), *shape)
        found[words] = twins.understanding(h[words]).view(-1, *shape)
        found[latents] = twins.generation(h[latents]).view(-1, *shape)
        return found

    def rotated(h: Tensor) -> Tensor:
        first, second = h.chunk(2, dim=-1)
        return h * cos + torch.cat([-second, first], dim=-1) * sin

    for layer, (old_keys, old_values) in zip(network.decoder.layers, past, strict=True):
        own, h = layer.attention, routed(layer.norm1, sequence, width)
        size = own.head_size
        q, k, v = (routed(twins, h, twins.generation.out_features) for twins in (own.q, own.k, own.v))
        q, k, v = (part.view(count + 2, -1, size) for part in (q, k, v))
        q = rotated(routed(own.q_norm, q, *q.shape[1:]))
        k = rotated(routed(own.k_norm, k, *k.shape[1:]))
        total = len(old_keys) + count + 2
        old, new = torch.arange(len(old_keys)), torch.arange(len(old_keys), total)
        keys, values = k.new_zeros(total, *k.shape[1:]), v.new_zeros(total, *v.shape[1:])
        keys[new], keys[old], values[new], values[old] = k, old_keys, v, old_values
        y = F.scaled_dot_product_attention(
            *(part.transpose(0, 1)[None] for part in (q, keys, values)), enable_gqa=q.shape[1] > k.shape[1]
        )
        y = y[0].transpose(0, 1).flatten(1)
        sequence = sequence + routed(own.out, y, width)
        sequence = sequence + routed(layer.mlp, routed(layer.norm2, sequence, width), width)
    return network.latent_out(routed(network.decoder.norm, sequence, width)[latents]).float()


def measured(
    context: Context, kind: str, across: int, rounds: int, *, steps: int = 4, interval: bool = False,
    plain: bool = True,
) -> tuple[dict[str, Watch], float]:  # fmt: skip
    """The sides in turns, the public scheme first, and how far the drawings lie apart.

    Args:
        interval: guidance acts in `INTERVAL` only, and a unit is a drawing.
        plain: our plain layers are a side too.
    """
    guidance = replace(KINDS[kind], interval=INTERVAL) if interval else KINDS[kind]
    noise = torch.randn(across**2, 96, generator=torch.Generator().manual_seed(across))
    drawn: list[list[Tensor]] = [[], [], []]
    shared = (context, guidance, noise, steps, interval)
    sides = {"public scheme": theirs(*shared, drawn[0])}
    if plain:
        sides["flow_steps"] = ours(False, *shared, drawn[1])
    sides["flow_steps, make_fast"] = ours(True, *shared, drawn[2])
    watches = take_turns(sides, rounds)
    wanted = drawn[0][0]
    error = max(float((one[0] - wanted).abs().max() / wanted.abs().max()) for one in drawn[1:] if one)
    dtype = context.network.decoder.embed.weight.dtype
    assert error < (1e-4 if dtype == torch.float32 else 0.1), f"drawings differ by {error:.1g}"
    return watches, error


ABOUT = "A guided step (interval (0, 1]; or a drawing in 6 steps, interval (0.4, 1]): milliseconds."
COLUMNS = ["shape", "drawing", "latent tokens", "weights", *HEAD]


def cells(
    label: str, kind: str, across: int, dtype: torch.dtype, watches: dict[str, Watch], error: float
) -> list[list[str]]:
    """The rows of a measurement, under `COLUMNS`."""
    name = f"{str(dtype).removeprefix('torch.')}, drawings within {error:.0e}"
    return rows([label, kind, str(across**2), name], watches)


def main() -> None:
    """All shapes, kinds and sizes in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    found = [COLUMNS]
    for label, (shape, sizes) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            made = make_fast(network(shape, dtype))
            for kind in KINDS:
                context = read(made, kind)
                for across, rounds in sizes.items():
                    for interval in (False, True):
                        timed = measured(
                            context, kind, across, options.rounds or rounds, steps=6 if interval else 4,
                            interval=interval,
                        )  # fmt: skip
                        name = f"{kind}, interval (0.4, 1]" if interval else kind
                        found += cells(label, name, across, dtype, *timed)
    report(ABOUT, found, options, load)


if __name__ == "__main__":
    main()
