# SPDX-License-Identifier: Apache-2.0
"""The drawing of a `TensorPath` in plain operators, for exporters that follow tensors and nothing else.

Where each token stands, who sees whom and which expert takes it follow from the words and the size of the
picture alone: `Plan.of` works that out, with `pack` as ever, and `draw` runs the same weights over it.
All pictures share the plan, so a batch is one more axis; tokens come first, as the experts part them.
  N pictures   L tokens   Z latent tokens   C numbers a latent token   D hidden size   H heads   E head size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_unimedvl import flow
from monai_unimedvl.networks.layers import rotary, rotate
from monai_unimedvl.sequence import Canvas, Layout, PackedSequence, Segment, Text, View, pack, visible

if TYPE_CHECKING:
    from monai_unimedvl.networks.decoder import Layer
    from monai_unimedvl.networks.layers import MLP
    from monai_unimedvl.networks.tensor_path import TensorPath
    from monai_unimedvl.networks.unimedvl import UniMedVL
    from monai_unimedvl.networks.vision import Vision

Past = tuple[Tensor, Tensor]  # keys and values (N, H, L, E) of a layer
Matrices = tuple[Tensor, Tensor]  # (h, H) and (W, w), around a picture
Size = tuple[int, int]


@dataclass(frozen=True)
class Stretch:
    """Tokens that are read together, in memory: words and marks, then patches to understand, then latents.

    Args:
        seq: as packed: what a head asks about a drawing.
        ids: (T,) words and marks.
        patches, latents: places in the tables of fixed positions.
        rope: cos and signed sin, (L, 1, 1, E).
        mask: (L, L) who sees whom among them, or None for everybody. The past is seen by all.
    """

    seq: PackedSequence
    ids: Tensor
    patches: Tensor
    latents: Tensor
    rope: tuple[Tensor, Tensor]
    mask: Tensor | None

    @classmethod
    def of(cls, segments: Sequence[Segment], path: TensorPath, start: int = 0) -> Stretch:
        """One sample's segments, which go on at rotary position `start`."""
        network, weight = path.network, path.network.decoder.embed.weight
        seq = pack([segments], path.marks, start=[start]).to(weight.device)
        at = torch.cat([seq.text_at, seq.view_at, seq.latent_at])  # experts stay side by side
        layout = Layout(*(x[at] for x in seq.layout))
        cos, sin = rotary(layout.position, network.decoder.head_size, network.decoder.rope_theta)
        mask = visible(layout.query(), layout)
        views = seq.view_cells[:, 0] * network.vision.grid_side + seq.view_cells[:, 1]  # type: ignore[union-attr]
        latents = seq.latent_cells[:, 0] * network.latent_side + seq.latent_cells[:, 1]
        rope = cos.unsqueeze(1).to(weight), sin.unsqueeze(1).to(weight)
        return cls(seq, seq.text_ids, views, latents, rope, None if bool(mask.all()) else mask)


@dataclass(frozen=True)
class Plan:
    """What follows from the words and the size of the pictures.

    Args:
        branches: a prompt (None: an empty one) and the drawing behind it; with guidance a second, wordless.
        noise: (Z, 1, C), where every drawing starts.
        times: from 1 to 0.
        canvas, view, back: matrices (rows, columns) that bring pictures to the size of a canvas, of a view,
            and drawings back; None where the size is right.
    """

    branches: list[tuple[Stretch | None, Stretch]]
    noise: Tensor
    times: list[float]
    grid: Size
    canvas: Matrices | None
    view: Matrices | None
    back: Matrices | None

    @classmethod
    def of(cls, path: TensorPath, size: Size) -> Plan:
        """The plan of a path for pictures of `size`, rows and columns."""
        canvas, view = path.fitted("canvas", *size), path.fitted("view", *size)
        stride, patch = path.network.canvas_stride, path.network.vision.patch_size  # type: ignore[union-attr]
        grid = canvas[0] // stride, canvas[1] // stride
        cells = view[0] // patch, view[1] // patch
        noise = path.noise(grid)
        pictures: list[Segment] = [
            Canvas(grid, noise),
            View(torch.zeros(cells[0] * cells[1], 3 * patch**2), cells),
        ]
        prompt: list[Segment] = (
            [*pictures, Text(path.instruction)] if path.reads else [Text(path.instruction)]
        )
        wordless = prompt[:-1]
        branches = []
        for segments in [prompt, wordless] if path.guidance.text > 1 else [prompt]:
            read = Stretch.of(segments, path) if segments else None
            start = read.seq.plan.next_position[0] if read else 0
            branches.append((read, Stretch.of([Canvas(grid, noise, noisy=True)], path, start)))
        weight = path.network.decoder.embed.weight
        noise = noise.to(weight.device, torch.promote_types(weight.dtype, torch.float32)).unsqueeze(1)
        return cls(
            branches, noise, flow.schedule(path.steps, path.shift).tolist(), grid,
            _resizing(size, canvas, weight), _resizing(size, view, weight), _resizing(canvas, size, noise),
        )  # fmt: skip


def draw(path: TensorPath, image: Tensor, plan: Plan) -> Tensor:
    """(N, 3, H, W) in [0, 1], of the plan's size, in the type of the weights -> the same"""
    network, branches = path.network, plan.branches
    count = image.shape[0]
    latents, patches = None, None
    if path.reads:
        canvas = _resized(image, plan.canvas) * 2 - 1
        latents = _tokens(network.autoencoder.encode_stage_2_inputs(canvas), network.latent_patch)
        patches = _tokens(_resized(image, plan.view) * 2 - 1, network.vision.patch_size)  # type: ignore[union-attr]
    read = [
        None if prompt is None else _read(network, prompt, latents, patches, count) for prompt, _ in branches
    ]
    x = plan.noise + image.new_zeros(1, count, 1)  # (Z, N, C)
    for t, t_next in zip(plan.times[:-1], plan.times[1:], strict=True):
        each = [
            _velocity(network, drawing, x, t, past, latents, plan.grid)
            for (_, drawing), past in zip(branches, read, strict=True)
        ]
        x = flow.step(x, _guided(path.guidance, each), t, t_next)
    latent = _picture(x, plan.grid, network.latent_patch)
    drawn = (network.autoencoder.decode_stage_2_outputs(latent) * 0.5 + 0.5).clamp(0, 1)
    return _resized(drawn, plan.back)


def _read(
    network: UniMedVL, prompt: Stretch, latents: Tensor | None, patches: Tensor | None, count: int
) -> list[Past]:
    """Keys and values of a prompt in every layer; latents (Z, N, C), patches (V, N, p*p*3)."""
    parts = [_words(network, prompt, count)]
    if patches is not None:
        parts.append(_views(network, prompt, patches))
    if latents is not None:
        parts.append(_canvas(network, prompt, latents, 0.0))
    return _decoded(network, prompt, torch.cat(parts), None)[1]


def _velocity(
    network: UniMedVL, drawing: Stretch, x: Tensor, t: float, past: list[Past] | None, base: Tensor | None,
    grid: Size,
) -> Tensor:  # fmt: skip
    """x (Z, N, C) at time t, drawings of `grid` -> its velocity (Z, N, C)"""
    parts = [_words(network, drawing, x.shape[1]), _canvas(network, drawing, x, t)]
    h = _decoded(network, drawing, torch.cat(parts), past)[0][len(parts[0]) :]  # (Z, N, D)
    if network.prediction == "velocity":
        return network.latent_out(h).to(x)
    rows = _rows(x)
    seq = replace(
        drawing.seq, latents=rows, times=rows.new_full(rows.shape[:1], t, dtype=torch.float32),
        bases=None if base is None else _rows(base),
        based=torch.full(rows.shape[:1], base is not None, device=x.device),
    )  # fmt: skip
    velocity = network._from_image(_rows(h), seq, grid).to(x)
    return velocity.unflatten(0, (x.shape[1], -1)).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """(Z, N, ...) -> (N*Z, ...), picture by picture, as a pack holds them."""
    return x.transpose(0, 1).flatten(0, 1)


def _words(network: UniMedVL, stretch: Stretch, count: int) -> Tensor:
    """(T, N, D)"""
    return network.decoder.embed(stretch.ids).unsqueeze(1).expand(-1, count, -1)


def _views(network: UniMedVL, stretch: Stretch, patches: Tensor) -> Tensor:
    """(V, N, p*p*3) -> (V, N, D)"""
    vision: Vision = network.vision  # type: ignore[assignment]
    x = vision.patch(patches) + vision.position(stretch.patches).unsqueeze(1)
    for layer in vision.layers:
        heads = (y.permute(1, 2, 0, 3) for y in layer.before(x))  # (N, H, V, E)
        x = layer.after(x, F.scaled_dot_product_attention(*heads).permute(2, 0, 1, 3).flatten(2))
    connector: MLP = network.connector  # type: ignore[assignment]
    return connector(vision.norm(x)) + network.view_table[stretch.patches].unsqueeze(1)


def _canvas(network: UniMedVL, stretch: Stretch, latents: Tensor, t: float) -> Tensor:
    """(Z, N, C) at time t -> (Z, N, D)"""
    time = network.time_embed(torch.full((1,), t, device=latents.device))  # (1, D)
    rows = network.latent_in(latents.to(network.latent_in.weight.dtype))
    return rows + time + network.latent_table[stretch.latents].unsqueeze(1)


def _decoded(
    network: UniMedVL, stretch: Stretch, x: Tensor, past: list[Past] | None
) -> tuple[Tensor, list[Past]]:
    """(L, N, D) -> states after the final norm, and keys and values of each layer, the past's before them."""
    assert past is None or stretch.mask is None  # what follows a past is a drawing, which sees all
    kept, routes = [], stretch.seq.plan.routes
    for n, layer in enumerate(network.decoder.layers):
        x, new = _layer(layer, x, stretch, None if past is None else past[n])
        kept.append(new)
    return network.decoder.norm(x, routes), kept


def _layer(layer: Layer, x: Tensor, stretch: Stretch, past: Past | None) -> tuple[Tensor, Past]:
    """(L, N, D) -> (L, N, D), and keys and values (N, H, L, E)"""
    own, routes = layer.attention, stretch.seq.plan.routes
    h = layer.norm1(x, routes)
    q, k, v = (f(h, routes).unflatten(-1, (-1, own.head_size)) for f in (own.q, own.k, own.v))
    q, k = rotate(own.q_norm(q, routes), *stretch.rope), rotate(own.k_norm(k, routes), *stretch.rope)
    q, k, v = (y.permute(1, 2, 0, 3) for y in (q, k, v))
    k, v = (y.repeat_interleave(own.num_heads // own.num_kv_heads, 1) for y in (k, v))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y = F.scaled_dot_product_attention(q, k, v, stretch.mask).permute(2, 0, 1, 3).flatten(2)  # (L, N, H*E)
    x = x + own.out(y, routes)
    return x + layer.mlp(layer.norm2(x, routes), routes), (k, v)


def _guided(guidance: flow.Guidance, each: Sequence[Tensor]) -> Tensor:
    """The velocity (Z, N, C) of all branches together."""
    if len(each) == 1:
        return each[0]
    full, wordless = (v.transpose(0, 1).flatten(1) for v in each)  # (N, Z*C)
    if guidance.renorm == "global":  # over a sample, which is a row here
        guidance = replace(guidance, renorm="channel")
    return guidance.combine(full, wordless, None).unflatten(1, each[0][:, 0].shape).transpose(0, 1)


def _tokens(image: Tensor, patch: int) -> Tensor:
    """`patchify` of a batch, tokens first: (N, C, H, W) -> (H/patch * W/patch, N, patch*patch*C)"""
    x = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (N, C, h, p, w, p)
    return x.permute(2, 4, 0, 3, 5, 1).flatten(3).flatten(0, 1)


def _picture(tokens: Tensor, grid: Size, patch: int) -> Tensor:
    """`unpatchify` of a batch: (h*w, N, patch*patch*C) -> (N, C, h*patch, w*patch)"""
    x = tokens.unflatten(0, grid).unflatten(3, (patch, patch, -1))  # (h, w, N, p, p, C)
    return x.permute(2, 5, 0, 3, 1, 4).flatten(4).flatten(2, 3)


def _resizing(before: Size, after: Size, like: Tensor) -> Matrices | None:
    """Bicubic resizing as two matrices, since it is linear in rows and columns; None for the same size.

    Args:
        like: has the type and device.
    """
    if before == after:
        return None
    rows, columns = (_matrix(*sides).to(like) for sides in zip(before, after, strict=True))
    return rows, columns.T


def _matrix(before: int, after: int) -> Tensor:
    """(after, before)"""
    one = torch.eye(before, dtype=torch.float64)[None, None]
    return F.interpolate(one, (after, before), mode="bicubic", antialias=True)[0, 0]


def _resized(image: Tensor, matrices: Matrices | None) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 3, h, w)"""
    if matrices is None:
        return image
    rows, columns = matrices
    return (rows @ image @ columns).clamp(0, 1)
