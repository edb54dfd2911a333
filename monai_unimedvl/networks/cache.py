# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the past, and how new tokens meet them.

S samples   B of them that say one word   n new tokens   N past and new   K key-value heads   E head size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from monai_unimedvl.networks.attention import Mask, softmax_attention
from monai_unimedvl.networks.layers import scaled_dot_product
from monai_unimedvl.sequence import CAUSAL, Block, Layout, Part, Plan

if TYPE_CHECKING:
    from monai_unimedvl.networks.decoder import Decoder

LayerCache = tuple[Tensor, Tensor]
Window: TypeAlias = "Alone | Each | Together"
Past: TypeAlias = "tuple[Sequence[Window], int]"  # and the layer

ONE_BY_ONE = ("cpu",)  # here a mask costs more than a call for each sample: nothing is padded or gathered


class KVCache:
    """Keys and values of the past, one slab a sample, preallocated and written in place.

    The past is all visible to its own sample: spans are forgotten once cached; noisy tokens are never kept.

    Args:
        capacity: tokens that one sample can hold; `reserve` enlarges it.
    """

    def __init__(self, decoder: Decoder, samples: int, capacity: int = 256) -> None:
        weight = decoder.embed.weight
        shape = (len(decoder.layers), samples, decoder.num_kv_heads, capacity, decoder.head_size)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = [0] * samples  # cached tokens
        self.positions = [0] * samples  # next rotary position

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layout(self) -> Layout:
        """Layout (N,) of what the cache holds, sample by sample, earlier than anything new."""
        sample = torch.cat([torch.full((n,), s) for s, n in enumerate(self.lengths)])
        zero = torch.zeros_like(sample)
        return Layout(sample, zero - 1, zero, zero + CAUSAL, zero.bool())

    def reserve(self, tokens: int) -> None:
        """Make room for at least `tokens` in every sample; doubles, so that growth costs little."""
        if tokens <= self.capacity:
            return
        grown = max(tokens, 2 * self.capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:3], grown, old.shape[4])
            new[:, :, :, : old.shape[3]] = old
            setattr(self, name, new)

    def advance(self, plan: Plan) -> None:
        """Count the new tokens of a pack as past."""
        for block in plan.blocks:
            for s in block.samples:
                self.lengths[s] += block.length
        for s, position in plan.next_position.items():
            self.positions[s] = position

    def hold(self, new: dict[int, int], max_context: int) -> None:
        """Make room for so many new tokens of each sample.

        Raises:
            ValueError: a sample outgrows `max_context`.
        """
        longest = max((self.lengths[s] + n for s, n in new.items()), default=0)
        if longest > max_context:
            raise ValueError(
                f"The prompt and answer hold {longest} tokens, expected at most {max_context} "
                "in the context of this model: shorten the text, or give fewer or smaller images."
            )
        self.reserve(longest)

    def copy(self, source: int, target: int, tokens: int, position: int) -> None:
        """Let sample `target` have read what the first `tokens` of sample `source` are, and nothing else."""
        if source != target:
            for x in (self.keys, self.values):
                x[:, target, :, :tokens] = x[:, source, :, :tokens]
        self.lengths[target], self.positions[target] = tokens, position

    def windows(self, blocks: Sequence[Block]) -> list[Window]:
        """Where the new tokens of each sample, or of several that say one word each, meet their past."""
        found: list[Window] = []
        at = 0
        for block in blocks:
            if block.length == 1:
                found.append(self.words(block.samples, at))
                at += len(block.samples)
                continue
            for s in block.samples:
                for n, mask in _stretches(block, self.lengths[s]):
                    found.append(self._alone(s, at, self.lengths[s] + n.start, n.stop - n.start, mask))
                    at += n.stop - n.start
        return found

    def words(self, samples: Sequence[int], at: int = 0) -> Window:
        """Where one new word of each of `samples` meets its past; their rows begin at `at`."""
        if len(samples) == 1:
            return self._alone(samples[0], at, self.lengths[samples[0]], 1, None)
        before = [self.lengths[s] for s in samples]
        device, longest, first = self.keys.device, max(before) + 1, samples[0]
        side_by_side = tuple(samples) == tuple(range(first, first + len(samples)))
        where, length = torch.tensor([list(samples), before], device=device).unbind(0)
        rows, layers = slice(at, at + len(samples)), list(zip(self.keys, self.values, strict=True))
        if device.type in ONE_BY_ONE and not (side_by_side and min(before) + 1 == longest):
            seen = [
                [x[:, s : s + 1, :, : n + 1].unbind(0) for x in (self.keys, self.values)]
                for s, n in zip(samples, before, strict=True)
            ]
            return Each(rows, layers, where, length, [tuple(views) for views in seen])  # type: ignore[misc]
        mask = None
        if min(before) + 1 < longest:
            mask = (torch.arange(longest, device=device) <= length.unsqueeze(-1))[:, None, None]
        among = slice(first, first + len(samples)) if side_by_side else where
        return Together(rows, layers, among, where, length, longest, mask)

    def _alone(self, s: int, at: int, before: int, n: int, mask: Mask) -> Alone:
        new = [x[:, s, :, before : before + n].transpose(1, 2) for x in (self.keys, self.values)]
        seen = [x[:, s : s + 1, :, : before + n] for x in (self.keys, self.values)]
        views = [x.unbind(0) for x in (*new, *seen)]
        mask = mask.to(self.keys.device) if isinstance(mask, Tensor) else mask
        return Alone(slice(at, at + n), views[0], views[1], views[2], views[3], mask)

    def fork(self, samples: Sequence[int]) -> KVCache:
        """A copy that holds the given samples, in that order; a sample may be named more than once."""
        copy = object.__new__(KVCache)
        rows, device = list(samples), self.keys.device
        longest = max((self.lengths[s] for s in rows), default=0)
        shape = (self.keys.shape[0], len(rows), *self.keys.shape[2:])
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(shape)
            chosen = old[:, :, :, :longest].index_select(
                1, torch.tensor(rows, device=device, dtype=torch.long)
            )
            new[:, :, :, :longest] = chosen
            setattr(copy, name, new)
        copy.lengths = [self.lengths[s] for s in rows]
        copy.positions = [self.positions[s] for s in rows]
        return copy


def attend_cached(q: Tensor, k: Tensor, v: Tensor, windows: Sequence[Window], n: int) -> Tensor:
    """Attention of layer n over the past and the new tokens; writes the new ones behind the past."""
    if len(windows) == 1:
        return windows[0].attend(n, q, k, v)
    outputs = [window.attend(n, q[window.rows], k[window.rows], v[window.rows]) for window in windows]
    return torch.cat(outputs) if outputs else q.flatten(1)


@dataclass(frozen=True)
class Alone:
    """One sample: views of the cache in every layer, made once a forward.

    Args:
        rows: of its new tokens, in order of reading.
        new_keys, new_values: (n, K, E) a layer, where the new ones go.
        keys, values: (1, K, N, E) a layer, the past and the new ones.
    """

    rows: slice
    new_keys: Sequence[Tensor]
    new_values: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    mask: Mask

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (n, H, E), k and v (n, K, E) -> (n, H*E)"""
        self.new_keys[n].copy_(k)
        self.new_values[n].copy_(v)
        return softmax_attention(q.unsqueeze(0), self.keys[n], self.values[n], self.mask).squeeze(0)


@dataclass(frozen=True)
class Each:
    """One new token for each of several samples, written in one call and read one sample after the other.

    Args:
        at: (B,) numbers in the cache; `before`: (B,) tokens of the past.
        seen: for each sample its keys and values (1, K, N, E) a layer.
    """

    rows: slice
    layers: Sequence[LayerCache]
    at: Tensor
    before: Tensor
    seen: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, E), k and v (B, K, E) -> (B, H*E)"""
        keys, values = self.layers[n]  # (S, K, capacity, E)
        q, k, v = (x.to(keys.dtype) for x in (q, k, v))  # autocast makes them smaller
        keys[self.at, :, self.before], values[self.at, :, self.before] = k, v
        grouped = q.unflatten(1, (k.shape[1], -1)).split(1)  # the heads of a group are query rows
        outputs = [
            scaled_dot_product(one, mine[n], other[n])
            for one, (mine, other) in zip(grouped, self.seen, strict=True)
        ]
        return torch.cat(outputs).flatten(1)


@dataclass(frozen=True)
class Together:
    """One new token for each of several samples, in one call.

    Args:
        samples: (B,) numbers in the cache, or a slice where these are all of it.
        at: (B,) the same as numbers; `before`: (B,) tokens of the past.
        mask: (B, 1, 1, N) or None, where their pasts are of one length.
    """

    rows: slice
    layers: Sequence[LayerCache]
    samples: Tensor | slice
    at: Tensor
    before: Tensor
    longest: int
    mask: Tensor | None

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, E), k and v (B, K, E) -> (B, H*E)"""
        keys, values = self.layers[n]  # (S, K, capacity, E)
        q, k, v = (x.to(keys.dtype) for x in (q, k, v))  # autocast makes them smaller
        keys[self.at, :, self.before], values[self.at, :, self.before] = k, v
        seen = [x[self.samples, :, : self.longest] for x in (keys, values)]
        return softmax_attention(q.unsqueeze(1), seen[0], seen[1], self.mask).squeeze(1)


def _stretches(block: Block, past: int) -> Iterator[tuple[slice, Mask]]:
    """The new tokens of a sample of the block, part by part: images see all, words a mask or nothing more.

    A part is read once those before it are written; where one skips a part (a drawing), all are read at once.
    """
    if not all(part.sees == tuple(range(i)) for i, part in enumerate(block.parts)):
        yield slice(0, block.length), _with_past(block.mask, past, block.length)
        return
    at = 0
    for part in block.parts or (Part(block.length, (), block.mask),):
        is_words = part.mask is not None
        yield slice(at, at + part.length), _with_past("causal", past + at, part.length) if is_words else None
        at += part.length


def _with_past(mask: Mask, past: int, length: int) -> Mask:
    """The mask of new tokens (length, length) widened by a past that is all visible."""
    if mask is None or past == 0 or length == 1:
        return mask
    new = torch.ones(length, length, dtype=torch.bool).tril() if mask == "causal" else mask
    assert isinstance(new, Tensor)
    return torch.cat([torch.ones(length, past, dtype=torch.bool, device=new.device), new], dim=1)
