# SPDX-License-Identifier: Apache-2.0
"""Pairs that are alike among many, without comparing all with all.

Some bits of each hash are a key; equal keys lie together once sorted, and only neighbours are compared. That
is done for several choices of bits: n log n time, and memory for the hashes themselves.
  N things   W bytes of a hash
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.data.prints import (
    BITS,
    IMAGE_BYTES,
    PERMUTATIONS,
    ImagePrint,
    WordPrint,
    thumbnails,
)

TABLES, KEY_BITS = 8, 20  # of 256: two hashes 8 bits apart share a key with probability 0.998
REACH = 32  # neighbours of one key that are compared
BANDS = 8  # of 32 MinHash values, 4 each: a Jaccard index of 0.9 shares a band with probability 0.9998
Pairs = NDArray[np.int64]


def near_images(prints: Sequence[ImagePrint], *, distance: int = 16, similarity: float = 0.99) -> Pairs:
    """Pairs (i, j), i < j, of pictures that look alike: resized, compressed again, brighter or darker.

    Args:
        distance: bits of 256 that may differ in one of the two hashes.
        similarity: correlation of the thumbnails that is needed then.

    Returns:
        (P, 2), sorted.
    """
    packed = np.frombuffer(b"".join(each.packed for each in prints), np.uint8).reshape(-1, IMAGE_BYTES)
    return near_packed_images(packed, distance=distance, similarity=similarity)


def near_packed_images(packed: NDArray[np.uint8], *, distance: int, similarity: float) -> Pairs:
    """As `near_images`, of prints as they are packed: (N, 208)"""
    if len(packed) < 2:
        return np.zeros((0, 2), np.int64)
    width = BITS * BITS // 8
    found = []
    for first in (0, width):  # the average hash, and that of the cosine transform
        hashes = packed[:, first : first + width]  # (N, 32)

        def alike(a: NDArray[np.int64], b: NDArray[np.int64], bits: NDArray[np.uint8] = hashes) -> NDArray:
            near = np.bitwise_count(bits[a] ^ bits[b]).sum(1, dtype=np.int64) <= distance
            one, other = (thumbnails(packed[at[near], 2 * width :]) for at in (a, b))
            near[near] = np.einsum("nd,nd->n", one, other) >= similarity
            return near

        found += [*_neighbours(_bit_keys(hashes), hashes[:, :8].copy().view("<u8")[:, 0], alike)]
    return _unique(found)


def near_words(prints: Sequence[WordPrint], *, similarity: float = 0.9) -> Pairs:
    """Pairs (i, j), i < j, of texts whose sets of three words overlap by this share; short ones have none.

    Returns:
        (P, 2), sorted.
    """
    long = np.array([n for n, each in enumerate(prints) if each.minhash], np.int64)
    packed = b"".join(bytes.fromhex(prints[n].minhash) for n in long)
    return long[near_minhashes(np.frombuffer(packed, "<u4").reshape(-1, PERMUTATIONS), similarity=similarity)]


def near_minhashes(hashes: NDArray[np.uint32], *, similarity: float) -> Pairs:
    """As `near_words`, of MinHashes (N, 32)"""
    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)

    def alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray:
        return (hashes[a] == hashes[b]).mean(1) >= similarity

    def keys() -> Iterator[NDArray[np.uint64]]:
        for band in np.split(np.arange(PERMUTATIONS), BANDS):
            mixed = np.zeros(len(hashes), np.uint64)
            for column in band:  # four values -> 64 bits, by FNV's multiplier
                mixed = (mixed ^ hashes[:, column].astype(np.uint64)) * np.uint64(1099511628211)
            yield mixed

    return _unique([*_neighbours(keys(), hashes[:, 0].astype(np.uint64), alike)])


def _bit_keys(hashes: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
    """(N,) keys of some bits each, always the same ones."""
    draws = np.random.default_rng(20_260_101)
    for _ in range(TABLES):
        key = np.zeros(len(hashes), np.uint64)
        for bit in draws.choice(8 * hashes.shape[1], KEY_BITS, replace=False).tolist():
            key = key << np.uint64(1) | (hashes[:, bit // 8] >> 7 - bit % 8 & 1)
        yield key


def _neighbours(
    keys: Iterator[NDArray[np.uint64]], rank: NDArray[np.uint64],
    alike: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray],
) -> Iterator[Pairs]:  # fmt: skip
    """The alike pairs among the neighbours of each key, ordered by `rank` within a key."""
    for key in keys:
        order = np.lexsort((rank, key))
        for step in range(1, min(REACH, len(order) - 1) + 1):
            a, b = order[:-step], order[step:]
            same = key[a] == key[b]
            if not same.any():
                break
            a, b = a[same], b[same]
            near = alike(a, b)
            yield np.stack([np.minimum(a, b)[near], np.maximum(a, b)[near]], 1)


def _unique(found: Sequence[Pairs]) -> Pairs:
    return np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)
