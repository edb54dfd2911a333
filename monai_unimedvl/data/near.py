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

from monai_unimedvl.data.prints import ImagePrint, WordPrint, hash_bits, minhashes, thumbnails

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
    if len(prints) < 2:
        return np.zeros((0, 2), np.int64)
    thumbs = thumbnails(prints)
    found = []
    for which in ("average", "dct"):
        hashes = hash_bits(prints, which)  # (N, 32)

        def alike(a: NDArray[np.int64], b: NDArray[np.int64], bits: NDArray[np.uint8] = hashes) -> NDArray:
            near = np.bitwise_count(bits[a] ^ bits[b]).sum(1, dtype=np.int64) <= distance
            near[near] = np.einsum("nd,nd->n", thumbs[a[near]], thumbs[b[near]]) >= similarity
            return near

        found += [*_neighbours(_bit_keys(hashes), hashes[:, :8].copy().view("<u8")[:, 0], alike)]
    return _unique(found)


def near_words(prints: Sequence[WordPrint], *, similarity: float = 0.9) -> Pairs:
    """Pairs (i, j), i < j, of texts whose sets of three words overlap by this share; short ones have none.

    Returns:
        (P, 2), sorted.
    """
    long = np.array([n for n, each in enumerate(prints) if each.minhash], np.int64)
    if len(long) < 2:
        return np.zeros((0, 2), np.int64)
    hashes = minhashes([prints[n] for n in long])  # (N, 32)

    def alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray:
        return (hashes[a] == hashes[b]).mean(1) >= similarity

    bands = hashes.reshape(len(hashes), BANDS, -1).astype(np.uint64)
    mixed = np.zeros(bands.shape[:2], np.uint64)
    for part in np.moveaxis(bands, -1, 0):  # four values -> 64 bits, by FNV's multiplier
        mixed = (mixed ^ part) * np.uint64(1099511628211)
    found = [*_neighbours(iter(mixed.T), hashes[:, 0].astype(np.uint64), alike)]
    return long[_unique(found)]


def _bit_keys(hashes: NDArray[np.uint8]) -> Iterator[NDArray[np.uint64]]:
    """(N,) keys of some bits each, always the same ones."""
    bits = np.unpackbits(hashes, axis=1)  # (N, 256)
    draws = np.random.default_rng(20_260_101)
    for _ in range(TABLES):
        chosen = draws.choice(bits.shape[1], KEY_BITS, replace=False)
        yield bits[:, chosen].astype(np.uint64) @ (np.uint64(1) << np.arange(KEY_BITS, dtype=np.uint64))


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
