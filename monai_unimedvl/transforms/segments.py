# SPDX-License-Identifier: Apache-2.0
"""A prompt, a dialogue or a record -> segments: the same road for training and inference.

The user's words become `Text`; the user's images become `View`s, and before each of them a clean `Canvas`
when something is to be drawn. The assistant's words become `Text` with loss, its images noisy `Canvas`es.
Marks such as <|im_end|> inside a text are text: the tokenizer's `encode` never yields a control token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.sequence import Canvas, Segment, Text, Turn, View, count_tokens
from monai_unimedvl.transforms.image import Rule, check_picture, check_turned, resize
from monai_unimedvl.transforms.pruning import PruneTokens
from monai_unimedvl.transforms.squares import squared

# spec: the rules of the released scripts; 387 in the generator script's ViT rule is taken for 378
VQA_VIEW = Rule(980, 378, 14, 2_007_040)  # UniMedVL VQA script, default.yaml vlm_sft
SCRIPT_CANVAS = Rule(1024, 32, 16)  # UniMedVL generator script


class Encoder(Protocol):
    """What `ToSegments` asks of a tokenizer."""

    def encode(self, text: str) -> Tensor:
        """text -> ids (n,) without marks"""
        ...


class ToSegments:
    """Segments of a prompt; see the module's first lines.

    Args:
        tokenizer: has `encode(text) -> ids`.
        view: resize rule of images to understand; its stride is the patch in pixels unless `view_patch` is
            given.
        canvas: resize rule of images in latent space; its stride is the pixels per latent token unless
            `canvas_patch` is given.
        fit: "matched" resizes the source once for each use, in float; "upstream" does as the reference: when
            drawing, the 8-bit result of the canvas rule goes to both uses, so a view is resampled twice.
        max_tokens: the context; None does not check.
        together: images that follow each other in one turn of the assistant are neighbouring slices, drawn
            together (see `Canvas.joined`); otherwise each is drawn alone.
        prune: drops tokens of neighbouring slices that repeat each other, where nothing is drawn.
        keep_drawn: after images drawn one by one or together, unless they end the dialogue, add their clean
            canvases and views for what follows.
        square: pad pictures to squares, and move the boxes and points in words with them (see `squares`).
    """

    def __init__(
        self, tokenizer: Encoder, *, view: Rule = VQA_VIEW, canvas: Rule = SCRIPT_CANVAS,
        fit: Literal["matched", "upstream"] = "matched", max_tokens: int | None = None,
        keep_drawn: bool = False, together: bool = False, view_patch: int | None = None,
        canvas_patch: int | None = None, prune: PruneTokens | None = None, square: bool = False,
    ) -> None:  # fmt: skip
        if fit not in ("matched", "upstream"):
            raise ValueError(
                f"ToSegments got fit={fit!r}, expected 'matched' or 'upstream': name one of these."
            )
        self.tokenizer, self.view, self.canvas, self.fit = tokenizer, view, canvas, fit
        self.max_tokens, self.keep_drawn, self.together = max_tokens, keep_drawn, together
        self.prune, self.square = prune, square
        self.view_patch, self.canvas_patch = view_patch or view.stride, canvas_patch or canvas.stride

    def __call__(
        self, source: Sequence[str | Tensor | Turn] | Mapping[str, Any], draw: bool = False,
        history: bool = False,
    ) -> list[Segment]:  # fmt: skip
        """Prompt, dialogue, or mapping with "turns" or "prompt" -> segments.

        Args:
            source: strings and images (3, H, W) in [0, 1]; or `Turn`s of these.
            draw: an image is to be drawn next. Implied by an image in an assistant's turn that is no history.
            history: the assistant's images are past and are read as the user's are, not drawn (noisy).

        What is drawn later may start from the user's last image of its size; where the user gave none, from
        the assistant's.

        Raises:
            ValueError: empty prompt, text beyond `max_tokens`, an image of wrong type, shape or range.
        """
        turns = dialogue(source)
        turns = squared(turns) if self.square else turns
        parts = [(turn.role, part) for turn in turns for part in turn.parts if not _says_nothing(part)]
        if not parts:
            raise ValueError("the prompt is empty, but some text or an image is expected: add one.")
        if not history:
            draw = draw or any(role == "assistant" and isinstance(part, Tensor) for role, part in parts)
        segments: list[Segment] = []
        waiting: list[Tensor] = []  # drawn together, and not read yet
        for index, (role, part) in enumerate(parts):
            if isinstance(part, str):
                segments.append(Text(self.tokenizer.encode(part), loss=role == "assistant"))
                continue
            image = checked_picture(part, f"image (part {index + 1} of the prompt)")
            if role == "user":
                segments += self._read(image, draw)
            elif history:
                segments += made_here(self._read(image, draw))
            else:
                joined = index > 0 and self._goes_on(parts, index - 1)
                drawn = self._canvas(self._fitted(image, self.canvas), noisy=True)
                segments.append(replace(drawn, joined=True) if joined else drawn)
                waiting.append(image)
                if self.keep_drawn and index + 1 < len(parts) and not self._goes_on(parts, index):
                    for seen in waiting:
                        segments += made_here(self._read(seen, True))
                waiting = waiting if self._goes_on(parts, index) else []
        if self.prune is not None and not draw:
            segments = self.prune(segments)
        self._check_length(segments)
        return segments

    def _goes_on(self, parts: Sequence[tuple[str, str | Tensor]], index: int) -> bool:
        """Whether the image at this place and the next one are drawn together."""
        pair = parts[index : index + 2]
        drawn = [role == "assistant" and isinstance(part, Tensor) for role, part in pair]
        return self.together and len(pair) == 2 and all(drawn)

    def _read(self, image: Tensor, draw: bool) -> list[Segment]:
        if not draw:
            return [self._view(self._fitted(image, self.view))]
        if self.fit == "upstream":
            image = self._fitted(image, self.canvas)
        return [self._canvas(self._fitted(image, self.canvas)), self._view(self._fitted(image, self.view))]

    def _fitted(self, image: Tensor, rule: Rule) -> Tensor:
        """(3, H, W) -> (3, h, w) in [0, 1]; nothing is resampled where the size is right."""
        size = rule.size(image.shape[2], image.shape[1])
        if self.fit == "upstream":
            return resize((image * 255).round().to(torch.uint8), size).float() / 255
        return resize(image, size, limits=(0.0, 1.0))

    def _view(self, image: Tensor) -> View:
        grid = image.shape[1] // self.view_patch, image.shape[2] // self.view_patch
        return View(patchify(_centred(image), self.view_patch), grid)

    def _canvas(self, image: Tensor, noisy: bool = False) -> Canvas:
        grid = image.shape[1] // self.canvas_patch, image.shape[2] // self.canvas_patch
        return Canvas(grid, image=_centred(image), noisy=noisy)

    def _check_length(self, segments: list[Segment]) -> None:
        if self.max_tokens is None:
            return
        words = count_tokens(s for s in segments if isinstance(s, Text))
        places = count_tokens(segments) - words
        if words + places > self.max_tokens:
            raise ValueError(
                f"the prompt needs {words + places} tokens ({words} of text, {places} of images), "
                f"but the context holds {self.max_tokens}: shorten the text, or use fewer or smaller images."
            )


def checked_picture(image: Tensor, name: str) -> Tensor:
    """A plain float32 tensor (3, H, W) in [0, 1].

    Raises:
        ValueError: it is none; `name` says which it was.
    """
    check_turned(image, name)
    image = image.detach().as_subclass(Tensor)
    if not image.dtype.is_floating_point:
        raise ValueError(
            f"{name} has type {image.dtype}, but floats in [0, 1] are expected: use a recipe, or divide by "
            "255."
        )
    check_picture(image, name, channels=(3,))
    low, high = float(image.min()), float(image.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(
            f"{name} has values in [{low:g}, {high:g}], but [0, 1] is expected: use a recipe, or scale it."
        )
    return image.float().clamp(0, 1)


def made_here(segments: Sequence[Segment]) -> list[Segment]:
    """The segments of an image that was drawn in this dialogue: later drawings start from what was given."""
    return [replace(s, given=False) if isinstance(s, Canvas) else s for s in segments]


def dialogue(source: Sequence[str | Tensor | Turn] | Mapping[str, Any]) -> list[Turn]:
    """Turns of a prompt (one turn of the user), of a dialogue, or of a mapping with "turns" or "prompt".

    Raises:
        ValueError: none of these.
    """
    if isinstance(source, Mapping):
        key = next((key for key in ("turns", "prompt") if key in source), None)
        if key is None:
            raise ValueError(
                f"a mapping with keys {list(source)} came, but 'turns' or 'prompt' is expected: add one "
                "of these."
            )
        source = source[key]
    if isinstance(source, str | Tensor) or not isinstance(source, Sequence):
        raise ValueError(
            f"a {type(source).__name__} came as prompt, but a list of texts and images is expected: "
            "put it in brackets."
        )
    if source and all(isinstance(part, Turn) for part in source):
        turns = [part for part in source if isinstance(part, Turn)]
    else:
        turns = [Turn("user", [part for part in source if not isinstance(part, Turn)])]
        if len(turns[0].parts) != len(source):
            raise ValueError("turns and bare parts are mixed in one prompt: put every part into a Turn.")
    for turn in turns:
        for part in turn.parts:
            if not isinstance(part, str | Tensor):
                raise ValueError(
                    f"a {type(part).__name__} came in a prompt, but texts and image tensors are expected: "
                    "convert it (recipe() gives tensors)."
                )
    return turns


def _says_nothing(part: str | Tensor) -> bool:
    return isinstance(part, str) and not part.strip()


def _centred(image: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]"""
    return (image - 0.5) / 0.5
