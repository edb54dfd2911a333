# SPDX-License-Identifier: Apache-2.0
"""Augmentations in MONAI's manner that keep the words true: a mirrored image says right where it said left.

All are `RandomizableTransform`s: `set_random_state(seed)` repeats them, `prob` says how often. A record holds
images (C, H, W) under keys of images and its words under keys of texts: str, or a prompt (a list of str and
tensors).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
from monai.utils import TransformBackends, ensure_tuple
from torch import Tensor

from monai_unimedvl.transforms.image import as_picture, like
from monai_unimedvl.transforms.intensity import window

_SIDES = {"left": "right", "lefts": "rights", "leftward": "rightward", "leftwards": "rightwards", "lt": "rt"}
_OTHER = {**_SIDES, **{right: left for left, right in _SIDES.items()}, "os": "od", "od": "os"}
# "lt." and "rt." are short for the sides; OS and OD (eyes) only in capitals
_SIDE = re.compile(r"\b(?i:(?:left|right)(?:s|wards?)?|[lr]t(?=\.))\b|\bO[SD]\b")
_NO_SIDE = re.compile(r"\b(?:right\s+(?:away|now|angles?)|all\s+right)\b", re.IGNORECASE)
_UNCLEAR = re.compile(
    r"o.?clock|situs|\b(?:dextro|l[a]?evo|sinistr|dextr)|hemifield|\bleft\s+(?:the|in\s+place|untreated|alone|out"
    r"|behind)\b|\b(?:was|were|has|had|have|been)\s+left\b(?!\s*[-\s]?sided)",
    re.IGNORECASE,
)


class UnclearSides(ValueError):
    """Words that cannot be mirrored safely."""


def swap_sides(text: str) -> str:
    """The words with left and right exchanged: "Left lung, RIGHT eye (OD)" -> "Right lung, LEFT eye (OS)".

    Raises:
        UnclearSides: words whose mirror image is not clear: the verb "left", clock positions, situs, levo-
            and dextro-.
    """
    unclear = _UNCLEAR.search(text)
    if unclear:
        raise UnclearSides(
            f"words with {unclear.group()!r} came, which have no safe mirror image: leave them."
        )
    fixed = [match.span() for match in _NO_SIDE.finditer(text)]

    def other(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in fixed):
            return match.group()
        word = match.group()
        swapped = _OTHER[word.lower()]
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE.sub(other, text)


def _words(value: Any, change: Callable[[str], str]) -> Any:
    """`change` on a text, or on each text of a prompt or of a list of texts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Sequence):
        return [change(part) if isinstance(part, str) else part for part in value]
    raise ValueError(
        f"a {type(value).__name__} came as words, but a text or a prompt (list) is expected: check the keys."
    )


class RandMirrord(RandomizableTransform, MapTransform, InvertibleTransform):
    """Mirror all images of a record left to right, and exchange left and right in its words.

    A record is left as it is where its words cannot be mirrored safely (see `swap_sides`). For parts of the
    body whose halves are alike, such as head, limbs and breast: a mirrored chest has its heart on the right.

    Args:
        keys: of images; all are mirrored together.
        text_keys: of words, each a str or a prompt; images inside a prompt are mirrored too.
        prob: of doing it.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, keys: KeysCollection, text_keys: KeysCollection, prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:  # fmt: skip
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.text_keys: tuple[Hashable, ...] = ensure_tuple(text_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping; the affine of a mirrored MetaTensor says so."""
        result = dict(data)
        self.randomize(None)
        said: dict[Hashable, Any] = {}
        mirror = bool(self._do_transform)
        if mirror:
            try:
                said = {key: self._said(result[key]) for key in self._present(result)}
            except UnclearSides:
                mirror = False
        for key in self.key_iterator(result):
            x = as_picture(result[key])
            result[key] = self._mirrored(x) if mirror else x
            if isinstance(result[key], MetaTensor):
                self.push_transform(result[key], extra_info={"mirrored": mirror})
        return {**result, **said}

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Images and words as they were."""
        result = dict(data)
        mirrored = False
        for key in self.key_iterator(result):
            done = self.pop_transform(result[key])
            if done["extra_info"]["mirrored"]:
                mirrored = True
                result[key] = self._mirrored(result[key])
        if mirrored:
            for key in self._present(result):
                result[key] = self._said(result[key])
        return result

    def _present(self, data: Mapping[Hashable, Any]) -> list[Hashable]:
        missing = [key for key in self.text_keys if key not in data]
        if missing and not self.allow_missing_keys:
            raise KeyError(
                f"RandMirrord found no {missing} in the record: words that keep their sides would lie."
            )
        return [key for key in self.text_keys if key in data]

    def _said(self, value: Any) -> Any:
        changed = _words(value, swap_sides)
        if isinstance(changed, list):
            return [part.flip(-1) if isinstance(part, Tensor) else part for part in changed]
        return changed

    @staticmethod
    def _mirrored(x: Tensor) -> Tensor:
        width = x.shape[-1]
        matrix = np.diag([1.0, -1.0, 1.0, 1.0])
        matrix[1, 3] = width - 1
        return like(x, x.as_subclass(Tensor).flip(-1), matrix)


class RandWindow(RandomizableTransform):
    """A window of HU (or of any unit) whose level and width differ a little each time: (1, H, W) -> [0, 1].

    Args:
        low, high: the window that is changed.
        level: most shift of the level, as a share of the width.
        width: most change of the width, as a share of it.
        prob: of changing it; else it is used as it is.
    """

    backend: ClassVar = [TransformBackends.TORCH]

    def __init__(
        self, low: float, high: float, level: float = 0.1, width: float = 0.2, prob: float = 1.0
    ) -> None:
        super().__init__(prob)
        if not 0 <= width < 1 or level < 0:
            raise ValueError(
                f"RandWindow got level={level}, width={width}, expected 0 or more, width below 1."
            )
        window(torch.zeros(1), low, high)
        self.low, self.high, self.level, self.width = low, high, level, width
        self.bounds = (low, high)

    def randomize(self, data: Any = None) -> None:
        """Draw the window."""
        super().randomize(data)
        middle, span = (self.low + self.high) / 2, self.high - self.low
        shift, stretch = self.R.uniform(-1, 1, 2)
        if self._do_transform:
            middle, span = middle + shift * self.level * span, span * (1 + stretch * self.width)
        self.bounds = (middle - span / 2, middle + span / 2)

    def __call__(self, image: NdarrayOrTensor, randomize: bool = True) -> Tensor:
        """(1, H, W) in its unit -> the same in [0, 1], `meta["window"]` tells which window it was"""
        x = as_picture(image)
        if randomize:
            self.randomize()
        return like(x, window(x.as_subclass(Tensor), *self.bounds), unit=True, window=self.bounds)


class _Randomd(RandomizableTransform, MapTransform):
    """A dictionary form whose chance is that of its `transform`."""

    transform: Any

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """As MONAI has it."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self


class RandWindowd(_Randomd):
    """Dictionary form of `RandWindow`: the same window for all keys."""

    backend: ClassVar = RandWindow.backend

    def __init__(
        self, keys: KeysCollection, low: float, high: float, level: float = 0.1, width: float = 0.2,
        prob: float = 1.0, allow_missing_keys: bool = False,
    ) -> None:  # fmt: skip
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = RandWindow(low, high, level, width, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping with the keys windowed."""
        result = dict(data)
        self.transform.randomize()
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key], randomize=False)
        return result


class RandParaphrase(RandomizableTransform):
    """Another way of saying the same instruction: one of its group, drawn evenly; other texts stay.

    Args:
        groups: lists of phrases that mean the same. A phrase in a text is found whole, capitals counted.
        prob: of changing a text.
    """

    def __init__(self, groups: Sequence[Sequence[str]], prob: float = 0.5) -> None:
        super().__init__(prob)
        for group in groups:
            if isinstance(group, str) or len(group) < 2:
                raise ValueError(
                    f"RandParaphrase got the group {group!r}, expected two phrases or more: add one."
                )
        self.groups = [list(group) for group in groups]

    def __call__(self, text: Any) -> Any:
        """str or prompt -> the same with phrases exchanged within their groups"""
        self.randomize(None)
        return _words(text, self._changed) if self._do_transform else text

    def _changed(self, text: str) -> str:
        for group in self.groups:
            for phrase in sorted(group, key=len, reverse=True):
                if phrase in text:
                    return text.replace(phrase, group[self.R.randint(len(group))], 1)
        return text


class RandDropCondition(RandomizableTransform):
    """Leave a part of the condition out, as guidance needs it in training: the words, the images, or both.

    Args:
        text, image, both: probabilities of leaving out the words alone, the images alone, or all; the rest
            leaves the prompt as it is.
    """

    def __init__(self, text: float = 0.1, image: float = 0.1, both: float = 0.05) -> None:
        super().__init__(1.0)
        if min(text, image, both) < 0 or text + image + both > 1:
            raise ValueError(
                f"RandDropCondition got text={text}, image={image}, both={both}, expected shares that add up "
                "to at most 1: lower them."
            )
        self.shares = (text, image, both)

    def __call__(self, prompt: Sequence[str | Tensor]) -> list[str | Tensor]:
        """A prompt -> the parts that are left, in order; [] where all went"""
        text, image, both = self.shares
        drawn = float(self.R.uniform())
        no_text = drawn < text or text + image <= drawn < text + image + both
        no_image = text <= drawn < text + image + both
        return [part for part in prompt if not (no_text if isinstance(part, str) else no_image)]


class _RandomWordsd(_Randomd):
    """The dictionary form of a random change of words; each key draws by itself."""

    array: ClassVar[type[RandomizableTransform]]

    def __init__(
        self, keys: KeysCollection, *args: Any, allow_missing_keys: bool = False, **kwargs: Any
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = self.array(*args, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new mapping with the keys changed."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


class RandParaphrased(_RandomWordsd):
    """Dictionary form of `RandParaphrase`."""

    array = RandParaphrase


class RandDropConditiond(_RandomWordsd):
    """Dictionary form of `RandDropCondition`."""

    array = RandDropCondition


RandMirrorD = RandMirrorDict = RandMirrord
RandWindowD = RandWindowDict = RandWindowd
RandParaphraseD = RandParaphraseDict = RandParaphrased
RandDropConditionD = RandDropConditionDict = RandDropConditiond
