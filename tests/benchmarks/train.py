# SPDX-License-Identifier: Apache-2.0
"""A training step on packs of the atlas mixture against the same samples padded in a batch.

Padded: every sample is filled up to the longest, linear layers run on the filling too, tokens are gathered
to the experts and written back around every layer, and attention has a mask (B, 1, T, T). All sides share
weights, samples, noise, losses, bf16 autocast and float32 attention, and must give the same loss. A unit is
one forward and backward pass over one pack.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import torch
import torch.nn.functional as F
from _timing import HEAD, Side, arguments, load_average, report, rows, take_turns
from torch import Tensor, nn

from monai_unimedvl import flow
from monai_unimedvl.bundle import load
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.mixture import Mixture
from monai_unimedvl.networks.compiling import compile_layers
from monai_unimedvl.networks.decoder import attend
from monai_unimedvl.networks.layers import rotary, rotate, scaled_dot_product
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Layout, PackedSequence, pack, visible
from monai_unimedvl.training.objective import Draw, draw
from monai_unimedvl.training.presets import nano_mixture

BUDGET, FILLED = 6000, 20  # tokens a pack; packs whose fill is measured
Decode = Callable[[UniMedVL, Tensor, PackedSequence], Tensor]  # embedded tokens -> states, in memory order
Routed = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Padded:
    """Where the tokens of a pack lie in a batch of B samples, T tokens each.

    Args:
        at: (L,) places in the flat batch, in memory order.
        understanding, generation: places of each expert; the filling goes through understanding.
        mask: (B, 1, T, T). position: (B*T,).
    """

    shape: tuple[int, int]
    at: Tensor
    understanding: Tensor
    generation: Tensor
    mask: Tensor
    position: Tensor


def padded(seq: PackedSequence) -> Padded:
    """The batch of a pack; made before the clock starts, as the plan of the pack is."""
    layout = seq.layout
    count, length = int(layout.sample.max()) + 1, int(layout.order.max()) + 1
    at = layout.sample * length + layout.order
    mask = torch.zeros(count, length, length, dtype=torch.bool)
    mask[:, :, 0] = True  # the filling must see something
    for s in range(count):
        own = (layout.sample == s).nonzero().squeeze(1)
        own = own[layout.order[own].argsort()]
        inside = Layout(*(x[own] for x in layout))
        mask[s, : len(own), : len(own)] = visible(inside.query(), inside)
    position = torch.zeros(count * length, dtype=torch.long).index_copy(0, at, layout.position)
    drawn = torch.zeros(count * length, dtype=torch.bool)
    drawn[at[seq.plan.routes.understanding :]] = True
    places = (~drawn).nonzero().squeeze(1), drawn.nonzero().squeeze(1)
    return Padded((count, length), at, *places, mask.unsqueeze(1), position)


def gathered(twins: nn.Module, x: Tensor, *, understanding: Tensor, generation: Tensor) -> Tensor:
    """Tokens gathered to the experts, and their results written back."""
    read, drawn = twins.understanding(x[understanding]), twins.generation(x[generation])
    y = read.new_zeros(len(x), *read.shape[1:]).index_put((understanding,), read)
    return y.index_put((generation,), drawn)


def decode_padded(batch: Padded, network: UniMedVL, x: Tensor, seq: PackedSequence) -> Tensor:
    """The decoder on the padded batch."""
    decoder = network.decoder
    cos, sin = rotary(batch.position, decoder.head_size, decoder.rope_theta)
    each: Routed = partial(gathered, understanding=batch.understanding, generation=batch.generation)
    x = x.new_zeros(batch.shape[0] * batch.shape[1], x.shape[1]).index_copy(0, batch.at, x)
    for layer in decoder.layers:
        own, h = layer.attention, each(layer.norm1, x)
        q, k, v = (each(f, h).unflatten(-1, (-1, own.head_size)) for f in (own.q, own.k, own.v))
        q, k = (rotate(each(norm, y), cos, sin) for norm, y in ((own.q_norm, q), (own.k_norm, k)))
        q, k, v = (y.unflatten(0, batch.shape).transpose(1, 2) for y in (q, k, v))
        y = scaled_dot_product(q, k, v, batch.mask, enable_gqa=own.num_heads > own.num_kv_heads)
        x = x + each(own.out, y.transpose(1, 2).flatten(2).flatten(0, 1))
        x = x + each(layer.mlp, each(layer.norm2, x))
    return each(decoder.norm, x)[batch.at]


def decode_packed(network: UniMedVL, x: Tensor, seq: PackedSequence) -> Tensor:
    """Ours."""
    return network.decoder(x, seq.plan)


def decode_gathering(network: UniMedVL, x: Tensor, seq: PackedSequence) -> Tensor:
    """Ours, with tokens in the order of reading: gathered and written back around every layer."""
    routes, arrival = seq.plan.routes, seq.plan.arrival
    read = arrival < routes.understanding
    each: Routed = partial(
        gathered, understanding=read.nonzero().squeeze(1), generation=(~read).nonzero().squeeze(1)
    )
    decoder, x = network.decoder, x[arrival]
    cos, sin = rotary(seq.layout.position[arrival], decoder.head_size, decoder.rope_theta)
    for layer in decoder.layers:
        own, h = layer.attention, each(layer.norm1, x)
        q, k, v = (each(f, h).unflatten(-1, (-1, own.head_size)) for f in (own.q, own.k, own.v))
        q, k = (rotate(each(norm, y), cos, sin) for norm, y in ((own.q_norm, q), (own.k_norm, k)))
        x = x + each(own.out, attend(q, k, v, seq.plan.blocks))
        x = x + each(layer.mlp, each(layer.norm2, x))
    return each(decoder.norm, x)[seq.plan.home]


def whole_masks(seq: PackedSequence) -> PackedSequence:
    """The same pack, each sample with one mask instead of its parts."""
    blocks = tuple(block._replace(parts=()) for block in seq.plan.blocks)
    return replace(seq, plan=replace(seq.plan, blocks=blocks))


def losses(network: UniMedVL, seq: PackedSequence, chance: Draw, decode: Decode) -> Tensor:
    """The losses of `Objective` around any decoder."""
    clean = seq.latents
    seq = seq.with_latents(flow.add_noise(clean, chance.noise, chance.times.unsqueeze(-1)), chance.times)
    hidden = decode(network, network.embed(seq), seq)
    text = F.cross_entropy(network.logits(hidden[seq.label_at]).float(), seq.labels)
    velocity = network._from_image(hidden[seq.latent_at], seq)
    target = flow.velocity(clean, chance.noise)
    return text + (velocity[seq.noisy].float() - target[seq.noisy]).square().mean()


def side(network: UniMedVL, packs: list[tuple[PackedSequence, Draw]], decodes: list[Decode]) -> Side:
    """One pass over every pack."""

    def run(tick: Callable[[], None]) -> None:
        tick()
        for (seq, chance), decode in zip(packs, decodes, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                loss = losses(network, seq, chance, decode)
            loss.backward()
            network.zero_grad()
            tick()

    return run


def filled(mixture: Mixture) -> float:
    """Share of the budget that tokens of samples take, over `FILLED` packs."""
    return mean(mixture.next_pack().tokens for _ in range(FILLED)) / mixture.budget


def main() -> None:
    options = arguments(__doc__)
    load_ = load_average()
    network, tokenizer = load("unimedvl_nano")
    network.train()
    for name, p in network.named_parameters():
        p.requires_grad_(not name.startswith("autoencoder."))
    mixture = nano_mixture(AtlasDataset(None, "train", progress=False), tokenizer, budget=BUDGET)
    packs = []
    for n in range(1):
        seq = pack(network.encode(mixture.next_pack().samples), tokenizer.marks)
        packs.append((seq, draw(seq, network.timestep_shift, torch.Generator().manual_seed(n))))
    whole = [(whole_masks(seq), chance) for seq, chance in packs]
    batches = [padded(seq) for seq, _ in packs]
    in_batches: list[Decode] = [partial(decode_padded, batch) for batch in batches]
    ours, gathering = [decode_packed] * len(packs), [decode_gathering] * len(packs)
    with torch.no_grad():
        for (seq, chance), theirs in zip(packs, in_batches, strict=True):
            wanted = losses(network, seq, chance, decode_packed)
            for decode in (theirs, decode_gathering):
                torch.testing.assert_close(losses(network, seq, chance, decode), wanted)

    plain = side(network, packs, ours)

    def switched(tick: Callable[[], None]) -> None:
        compile_layers(network)
        plain(tick)
        for layer in [*network.decoder.layers, *network.vision.layers]:
            layer.compiled = False

    began = time.perf_counter()
    switched(lambda: None)
    compiling = time.perf_counter() - began
    sides = {
        "padded batch": side(network, packs, in_batches),
        "packed, gather and scatter": side(network, packs, gathering),
        "packed, a mask a sample": side(network, whole, ours),
        "packed": plain,
        "packed, compiled layers": switched,
    }
    tokens = [len(seq) for seq, _ in packs]
    waste = mean(b.shape[0] * b.shape[1] / n for b, n in zip(batches, tokens, strict=True))
    watches = take_turns(sides, options.rounds or 4)
    about = (
        f"{__doc__.strip().splitlines()[0]} Nano, {mean(tokens):.0f} tokens a pack; the padded batches hold"
        f" {waste:.2f} times as many. Packs of {BUDGET} tokens are filled to {filled(mixture):.1%}"
        f" ({FILLED} packs). The first compiled passes took {compiling:.0f} s longer."
    )
    report(about, [HEAD, *rows([], watches)], options, load_)


if __name__ == "__main__":
    main()
