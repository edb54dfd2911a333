# SPDX-License-Identifier: Apache-2.0
"""Samples laid side by side in one sequence. `visible` is the one rule of attention; this is bookkeeping.

L tokens   T words   V view patches   Z latent tokens   C numbers a latent token   S samples
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monai_unimedvl.sequence.layout import CAUSAL, Block, Layout, Part, Plan, Routes, visible
from monai_unimedvl.sequence.segments import AROUND, Canvas, Marks, Samples, Segment, Text, View


@dataclass(frozen=True)
class PackedSequence:
    """Samples packed into one sequence; `*_at` are places (in memory order) among the L tokens.

    Args:
        text_ids: (T,), marks included, at `text_at`.
        patches: (V, p*p*3); `view_cells` (V, 2) row and column; `view_lengths` patches an image; those that
            leave a token, `view_kept` (n,) or None for all, are at `view_at`.
        latents: (Z, C) at `latent_at`; `latent_cells` (Z, 2); `times` (Z,); `noisy` (Z,) bool, has a target.
        bases: (Z, C) where a drawing may start from, zeros elsewhere, or None; `based` (Z,) bool says where,
            and `edits` grid -> (n,) places in Z of such drawings, `fresh` those of drawings from noise alone.
            They are found once: a device would have to stop for each look at `based`.
        labels: (N,) next ids at `label_at`; `label_weights` (N,) 1/sqrt(labels of the segment).
    """

    plan: Plan
    text_ids: Tensor
    text_at: Tensor
    patches: Tensor | None
    view_at: Tensor
    view_cells: Tensor
    view_lengths: tuple[int, ...]
    latents: Tensor | None
    latent_at: Tensor
    latent_cells: Tensor
    times: Tensor
    noisy: Tensor
    bases: Tensor | None
    based: Tensor
    labels: Tensor
    label_at: Tensor
    label_weights: Tensor
    canvas_lengths: tuple[int, ...] = ()
    view_kept: Tensor | None = None
    edits: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    fresh: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    last_at: tuple[int, ...] = ()  # memory place of each sample's last token, -1 for an empty sample

    @property
    def layout(self) -> Layout:
        return self.plan.layout

    def __len__(self) -> int:
        return len(self.plan.layout.sample)

    def with_latents(self, latents: Tensor, times: Tensor) -> PackedSequence:
        """The same pack with other latents (Z, C) and times (Z,), or (1,) where all have the same."""
        return replace(self, latents=latents, times=times)

    def detached(self) -> PackedSequence:
        """The same pack with understanding states cut off from the gradient (`freeze_und`)."""
        routes = self.plan.routes._replace(detach_understanding=True)
        return replace(self, plan=replace(self.plan, routes=routes))

    def to(self, device: torch.device | str) -> PackedSequence:
        """The same pack with every tensor on `device`."""

        def move(x: Any) -> Any:
            if isinstance(x, dict):
                return {key: move(one) for key, one in x.items()}
            return x.to(device) if isinstance(x, Tensor) else x

        plan = replace(
            self.plan,
            layout=Layout(*map(move, self.plan.layout)),
            blocks=tuple(
                block._replace(
                    mask=move(block.mask),
                    parts=tuple(part._replace(mask=move(part.mask)) for part in block.parts),
                )
                for block in self.plan.blocks
            ),
            arrival=move(self.plan.arrival),
            home=move(self.plan.home),
        )
        return replace(self, **{name: move(x) for name, x in vars(self).items() if name != "plan"}, plan=plan)


class _Piece(NamedTuple):
    """A segment that leaves tokens: its sample, order and position of its first token, its span."""

    segment: Segment
    sample: int
    order: int
    position: int
    span: int

    @property
    def length(self) -> int:
        """Tokens, marks included."""
        return self.segment.tokens + AROUND

    @property
    def kind(self) -> str:
        if isinstance(self.segment, Canvas) and self.segment.noisy:
            return "noisy"
        return "text" if isinstance(self.segment, Text) else "image"


def pack(samples: Samples, marks: Marks, start: Sequence[int] | None = None) -> PackedSequence:
    """The samples as one sequence.

    Args:
        samples: S lists of segments; an empty list is a sample without new tokens.
        start: the rotary position at which each sample goes on; 0 when omitted.

    Raises:
        ValueError: a canvas has not been encoded yet, an image does not fill its grid, or a base its canvas;
            a joined canvas follows no noisy one.
    """
    pieces, next_position = _place(samples, start)
    taught = [p.segment for p in pieces if isinstance(p.segment, Text) and p.segment.loss]
    views = [p.segment for p in pieces if isinstance(p.segment, View)]
    canvases = [p.segment for p in pieces if isinstance(p.segment, Canvas)]
    patches = [_fill(view, view.patches) for view in views]
    latents = [_fill(canvas, canvas.latents) for canvas in canvases]

    lengths = torch.tensor([p.length for p in pieces], dtype=torch.long)
    heads = [
        (*p[1:], p.kind == "noisy", isinstance(p.segment, Canvas), getattr(p.segment, "loss", False))
        for p in pieces
    ]
    rows = torch.tensor(heads, dtype=torch.long).view(-1, 7).repeat_interleave(lengths, 0)  # (L, 7)
    sample, order, position, span, noisy, drawn, loss = rows.unbind(1)
    first, length = (x.repeat_interleave(lengths) for x in (lengths.cumsum(0) - lengths, lengths))
    inside = torch.arange(len(rows)) - first  # 0, 1, ... in each piece
    is_text, is_mark = span == CAUSAL, (inside == 0) | (inside == length - 1)
    generation = drawn.bool() & ~is_mark
    has_label = loss.bool() & (inside < length - 1)  # text_end predicts nothing

    memory = torch.cat([(~generation).nonzero().squeeze(1), generation.nonzero().squeeze(1)])  # place -> row
    place = torch.empty_like(memory)  # row -> place
    place[memory] = torch.arange(len(memory))
    columns = (sample, order + inside, position + inside * is_text, span, noisy.bool())
    blocks, reading = _blocks(pieces, lengths)
    arrival, home = None, None
    if not torch.equal(reading, memory):
        arrival = place[reading]
        home = torch.empty_like(arrival)
        home[arrival] = torch.arange(len(arrival))
    layout = Layout(*(column[memory] for column in columns))
    routes = Routes(int((~generation).sum()), int(generation.sum()))
    last = {p.sample: end - 1 for p, end in zip(pieces, lengths.cumsum(0).tolist(), strict=True)}
    return PackedSequence(
        plan=Plan(layout, routes, blocks, arrival, home, next_position),
        text_ids=torch.tensor([i for p in pieces for i in _ids(p.segment, marks)], dtype=torch.long),
        text_at=place[is_text | is_mark],
        patches=torch.cat(patches) if patches else None,
        view_at=place[~(is_text | is_mark | generation)],
        view_cells=_cells(views),
        view_lengths=tuple(len(x) for x in patches),
        latents=torch.cat(latents) if latents else None,
        latent_at=place[generation],
        latent_cells=_cells(canvases),
        times=torch.tensor([c.time for c in canvases for _ in range(math.prod(c.grid))]),
        noisy=noisy[generation].bool(),
        bases=_bases(canvases, latents),
        based=torch.tensor([c.base is not None for c in canvases for _ in range(math.prod(c.grid))]).bool(),
        labels=torch.tensor([i for t in taught for i in _ids(t, marks)[1:]], dtype=torch.long),
        label_at=place[has_label],
        label_weights=(length[has_label] - 1).float().rsqrt(),
        canvas_lengths=tuple(len(x) for x in latents),
        edits=_places(canvases, [c.base is not None for c in canvases]),
        fresh=_places(canvases, [c.base is None and c.noisy for c in canvases]),
        view_kept=_kept(views),
        last_at=tuple(int(place[last[s]]) if s in last else -1 for s in range(len(samples))),
    )


def step(ids: Tensor, samples: Sequence[int], positions: Sequence[int]) -> PackedSequence:
    """One new word for each of `samples`: ids (B,) at the given rotary positions."""
    count, device = len(samples), ids.device
    sample, position = torch.tensor([list(samples), list(positions)], dtype=torch.long, device=device)
    zero = torch.zeros_like(sample)
    layout = Layout(sample, zero, position, zero + CAUSAL, zero.bool())
    after = {s: p + 1 for s, p in zip(samples, positions, strict=True)}
    return replace(
        _nothing(device),
        plan=Plan(layout, Routes(count, 0), (Block(tuple(samples), 1, None),), None, None, after),
        text_ids=ids,
        text_at=torch.arange(count, device=device),
        last_at=tuple(range(count)),
    )


def _bases(canvases: Sequence[Canvas], latents: Sequence[Tensor]) -> Tensor | None:
    """(Z, C) bases, zeros where a canvas has none; None where none has one."""
    if all(canvas.base is None for canvas in canvases):
        return None
    bases = []
    for canvas, x in zip(canvases, latents, strict=True):
        base = torch.zeros_like(x) if canvas.base is None else canvas.base.to(x)
        if base.shape != x.shape:
            raise ValueError(
                f"pack got a Canvas with a base of shape {tuple(base.shape)}, expected {tuple(x.shape)} like "
                "its latents: take the latents of an image of the same size."
            )
        bases.append(base)
    return torch.cat(bases)


def _places(canvases: Sequence[Canvas], meant: Sequence[bool]) -> dict[tuple[int, int], Tensor]:
    """Grid -> (n,) places in Z of the canvases of it that are meant, one after the other."""
    places: dict[tuple[int, int], list[Tensor]] = {}
    ends = accumulate(math.prod(canvas.grid) for canvas in canvases)
    for canvas, end, is_meant in zip(canvases, ends, meant, strict=True):
        if is_meant:
            places.setdefault(canvas.grid, []).append(torch.arange(end - math.prod(canvas.grid), end))
    return {grid: torch.cat(found) for grid, found in places.items()}


@lru_cache(maxsize=8)
def _nothing(device: torch.device) -> PackedSequence:
    """A pack of no samples."""
    return pack([], Marks(0, 0, 0, 0)).to(device)


def _place(samples: Samples, start: Sequence[int] | None) -> tuple[list[_Piece], dict[int, int]]:
    """The segments that leave tokens, each with its place, and the next rotary position of each sample."""
    pieces: list[_Piece] = []
    next_position: dict[int, int] = {}
    for s, segments in enumerate(samples):
        order, position = 0, 0 if start is None else start[s]
        for segment in segments:
            is_text = isinstance(segment, Text)
            if segment.dropped:
                position += 0 if is_text else 1
                continue
            piece = _Piece(segment, s, order, position, CAUSAL if is_text else len(pieces))
            if isinstance(segment, Canvas) and segment.joined:
                before = pieces[-1] if pieces and pieces[-1].sample == s else None
                if before is None or before.kind != "noisy":
                    raise ValueError(
                        "pack got a joined Canvas after no noisy one, expected its neighbour: put them "
                        "side by side."
                    )
                piece = piece._replace(position=before.position + 1, span=before.span)
            pieces.append(piece)
            order += piece.length
            position += {"text": piece.length, "image": 1, "noisy": 0}[piece.kind]
        next_position[s] = position
    return pieces, next_position


def _blocks(pieces: list[_Piece], lengths: Tensor) -> tuple[tuple[Block, ...], Tensor]:
    """Samples of one signature share a block; returns the blocks and their rows (L,) in reading order."""
    signatures: dict[int, tuple[tuple[str, int], ...]] = {}
    for p in pieces:
        before = signatures.get(p.sample, ())
        if isinstance(p.segment, Canvas) and p.segment.joined:  # one image with the canvas before it
            signatures[p.sample] = (*before[:-1], ("noisy", before[-1][1] + p.length))
        else:
            signatures[p.sample] = (*before, (p.kind, p.length))
    groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for s, kinds in signatures.items():
        groups.setdefault(kinds, []).append(s)
    ends = dict(zip((p.sample for p in pieces), lengths.cumsum(0).tolist(), strict=True))
    blocks, reading = [], [torch.empty(0, dtype=torch.long)]
    for kinds, members in groups.items():
        length = sum(n for _, n in kinds)
        blocks.append(Block(tuple(members), length, _mask(kinds), _parts(kinds)))
        reading += [torch.arange(ends[s] - length, ends[s]) for s in members]
    return tuple(blocks), torch.cat(reading)


def _ids(segment: Segment, marks: Marks) -> list[int]:
    """The words of a segment, marks included."""
    if isinstance(segment, Text):
        return [marks.text_start, *segment.ids.tolist(), marks.text_end]
    return [marks.image_start, marks.image_end]


def _fill(segment: View | Canvas, tokens: Tensor | None) -> Tensor:
    """The tokens (h*w, ...) of an image, checked against its grid."""
    h, w = segment.grid
    if tokens is None:
        raise ValueError("pack got a Canvas without latents: encode the samples with UniMedVL.encode first.")
    if len(tokens) != h * w:
        kind = type(segment).__name__
        raise ValueError(f"pack got a {kind} of {len(tokens)} tokens, expected {h}x{w}: correct its grid.")
    return tokens


def _kept(views: Sequence[View]) -> Tensor | None:
    """(n,) which of the patches of all views leave a token; None where all do.

    Raises:
        ValueError: numbers that are none of the view's patches, or not ascending.
    """
    if all(view.kept is None for view in views):
        return None
    found, before = [], 0
    for view in views:
        count = len(view.patches)
        kept = torch.arange(count) if view.kept is None else view.kept
        inside = not len(kept) or (
            int(kept[0]) >= 0 and int(kept[-1]) < count and bool((kept.diff() > 0).all())
        )
        if not inside:
            raise ValueError(
                f"pack got a View that keeps {kept.tolist()[:5]}... of {count} patches, expected ascending "
                "numbers of its own: correct them."
            )
        found.append(kept + before)
        before += count
    return torch.cat(found)


def _cells(images: Sequence[View | Canvas]) -> Tensor:
    """(n, 2) row and column of each token of the images."""
    each = [torch.cartesian_prod(*map(torch.arange, image.grid)) for image in images]
    return torch.cat([torch.empty(0, 2, dtype=torch.long), *each])


@lru_cache(maxsize=64)  # few: a mask of 4096 tokens is 16 MB
def _mask(kinds: tuple[tuple[str, int], ...]) -> Tensor | str | None:
    """`visible` inside one sample of these segments: None, "causal", or (n, n) bool."""
    if len(kinds) == 1:
        return "causal" if kinds[0][0] == "text" else None
    if all(kind == "text" for kind, _ in kinds):
        return "causal"
    spans = [CAUSAL if kind == "text" else i for i, (kind, n) in enumerate(kinds) for _ in range(n)]
    noisy = [kind == "noisy" for kind, n in kinds for _ in range(n)]
    n = len(spans)
    order, zero = torch.arange(n), torch.zeros(n, dtype=torch.long)
    layout = Layout(zero, order, zero, torch.tensor(spans), torch.tensor(noisy))
    return visible(layout.query(), layout)


@lru_cache(maxsize=256)
def _parts(kinds: tuple[tuple[str, int], ...]) -> tuple[Part, ...]:
    """The same as `_mask`, image by image and words by words; nothing for a sample of one part."""
    joined: list[tuple[str, int]] = []
    for kind, n in kinds:
        if joined and kind == joined[-1][0] == "text":
            joined[-1] = ("text", joined[-1][1] + n)
        else:
            joined.append((kind, n))
    if len(joined) == 1:
        return ()
    parts: list[Part] = []
    for i, (kind, n) in enumerate(joined):
        sees = tuple(j for j in range(i) if joined[j][0] != "noisy")
        mask: Tensor | str | None = None
        if kind == "text":
            past = sum(joined[j][1] for j in sees)
            mask = torch.ones(n, past + n, dtype=torch.bool).tril(past) if past else "causal"
        parts.append(Part(n, sees, mask))
    return tuple(parts)
