# SPDX-License-Identifier: Apache-2.0
"""What prompts begin alike with is read once: many questions about one image, one dialogue that goes on.

A past is a line of segments. Where two lines begin with the same segments, keys and values are the same up to
there, so they are copied and not computed: copying a token is moving some kilobytes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch

from monai_unimedvl.inferers.context import Context
from monai_unimedvl.sequence import Segment, Text, View
from monai_unimedvl.sequence.segments import AROUND

WORTH = 64  # tokens that must be spared before a batch is read in two forwards instead of one


@dataclass
class _Line:
    """What a sample has read: a key for each segment, and tokens and rotary position behind it."""

    keys: list[Hashable] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)

    def alike(self, keys: Sequence[Hashable]) -> int:
        """How many segments both begin with."""
        both = zip(self.keys, keys, strict=False)
        return next((n for n, (a, b) in enumerate(both) if a != b), min(len(self.keys), len(keys)))

    def end(self, segments: int) -> tuple[int, int]:
        return self.ends[segments - 1] if segments else (0, 0)


class Prefixes:
    """What the samples of a context have read, and how new prompts begin with some of it.

    A sample's line holds its prompt, not its answer: a dialogue that goes on is read on from its last prompt.
    Only words and images to understand are shared; a canvas ends what is alike.

    Args:
        worth: tokens that sharing inside of a batch must spare.
    """

    def __init__(self, context: Context, *, worth: int = WORTH) -> None:
        self.context, self.worth = context, worth
        self.lines = [_Line() for _ in range(len(context))]

    def alike(self, segments: Sequence[Segment]) -> tuple[int, int]:
        """The sample that begins with most of `segments`, and how many; -1 and 0 for none."""
        keys = [_key(segment) for segment in segments]
        found = [(line.alike(keys), s) for s, line in enumerate(self.lines)]
        count, s = max(found, key=lambda pair: pair[0], default=(0, -1))
        return (s, count) if count else (-1, 0)

    def read(self, batch: Mapping[int, Sequence[Segment]]) -> dict[int, int]:
        """Let samples start anew with prompts; how many tokens of each were not computed for it.

        Args:
            batch: for the number of a sample its segments.
        """
        keys = {s: [_key(segment) for segment in segments] for s, segments in batch.items()}
        spared = {s: self._begin(s, keys[s]) for s in batch}
        while waiting := [s for s in batch if len(self.lines[s].keys) < len(keys[s])]:
            groups: dict[tuple[Hashable, ...], list[int]] = {}
            for s in waiting:
                groups.setdefault(tuple(keys[s][: len(self.lines[s].keys) + 1]), []).append(s)
            reads: dict[int, int] = {}  # up to which segment
            followers: dict[int, list[int]] = {}
            for first, *others in groups.values():
                begun = len(self.lines[first].keys)
                common = min((_Line(keys[first]).alike(keys[s]) for s in others), default=begun)
                tokens = sum(length(segment) for segment in batch[first][begun:common])
                if tokens * len(others) >= self.worth:
                    reads[first], followers[first] = common, others
                else:
                    reads.update({s: len(keys[s]) for s in (first, *others)})
            self._read_on({s: (batch[s], keys[s], stop) for s, stop in reads.items()})
            for first, others in followers.items():
                for s in others:
                    before = self.lines[s].end(len(self.lines[s].keys))[0]
                    self._copy(first, s, reads[first])
                    spared[s] += self.lines[s].end(reads[first])[0] - before
        return spared

    def _begin(self, s: int, keys: Sequence[Hashable]) -> int:
        """Let a sample begin with what any sample has read of its prompt; tokens of that."""
        count, source = max((line.alike(keys), i == s, i) for i, line in enumerate(self.lines))[::2]
        self.context.forget(s)
        if not count:
            self.lines[s] = _Line()
            return 0
        self._copy(source, s, count)
        return self.lines[s].end(count)[0]

    def _copy(self, source: int, target: int, segments: int) -> None:
        line = self.lines[source]
        self.context.cache.copy(source, target, *line.end(segments))
        self.lines[target] = _Line(line.keys[:segments], line.ends[:segments])

    def _read_on(self, parts: Mapping[int, tuple[Sequence[Segment], Sequence[Hashable], int]]) -> None:
        batch: list[Sequence[Segment]] = [[] for _ in self.lines]
        for s, (segments, _, stop) in parts.items():
            batch[s] = segments[len(self.lines[s].keys) : stop]
        try:
            self.context.read(batch)
        except BaseException:
            for s in parts:  # nobody may begin with what was not read to its end
                self.lines[s] = _Line()
            raise
        for s, (_, keys, _) in parts.items():
            line = self.lines[s]
            for segment in batch[s]:
                tokens, position = line.end(len(line.keys))
                line.keys.append(keys[len(line.keys)])
                count = length(segment)
                line.ends.append((tokens + count, position + (count if isinstance(segment, Text) else 1)))


def length(segment: Segment) -> int:
    """Tokens that a segment takes, its two marks included."""
    return AROUND + segment.tokens


def _key(segment: Segment) -> Hashable:
    """Equal for segments that leave the same tokens; a canvas is like no other."""
    if isinstance(segment, Text):
        return tuple(segment.ids.tolist())
    if isinstance(segment, View):
        content = segment.patches.detach().cpu().contiguous().view(torch.uint8).numpy()
        kept = None if segment.kept is None else tuple(segment.kept.tolist())
        return segment.grid, str(segment.patches.dtype), kept, blake2b(content, digest_size=16).digest()
    return object()
