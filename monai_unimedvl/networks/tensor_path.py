# SPDX-License-Identifier: Apache-2.0
"""One generation as tensor in, tensor out: what MONAI's verbs call where they expect an ordinary network.

    pred = TensorPath(network, tokenizer.encode("Sharpen this image four times."), tokenizer.marks)(image)

The instruction is fixed, the picture is the only input: it is read as a canvas and a view, then the words,
and a noisy canvas is drawn after them. The numbers are those of `ImageInferer`.
`torch.jit.script` gets the same numbers as one traced graph for pictures of one size; `torch.export` and
`torch.onnx.export` too, by way of `straight`.
  N pictures   H rows   W columns   Z latent tokens of all drawings   C numbers a latent token
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import interpolate

from monai_unimedvl import flow
from monai_unimedvl.networks.decoder import KVCache
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.starts import based, bases
from monai_unimedvl.networks.straight import Plan, draw
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Marks, Segment, Text, View, pack

NEAR = 0.5  # what resampling and light may leave [0, 1] by


class TensorPath(nn.Module):
    """Pictures in, drawings out, after one instruction.

    Args:
        network: the model; its inferers are called with `.network`.
        instruction: ids of the words, without marks.
        marks: control tokens of the tokenizer.
        steps: network evaluations.
        shift: of the schedule, above 1 spends more steps near noise; None takes the network's own.
        seed: of the noise, which is the same for every picture.
        guidance: weight against the prompt without its words; 1 switches it off.
        reads: False draws from the words alone, and the picture only says in which size.

    Raises:
        ValueError: fewer than one step, no words, or a network that sees no images.
    """

    def __init__(
        self, network: UniMedVL, instruction: Sequence[int] | Tensor, marks: Marks, *,
        steps: int = 8, shift: float | None = None, seed: int = 0, guidance: float = 1.0, reads: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if steps < 1:
            raise ValueError(f"TensorPath got steps={steps}, expected at least 1: raise steps.")
        if not len(instruction):
            raise ValueError("TensorPath got an empty instruction, expected some words: say what to draw.")
        if network.vision is None:
            raise ValueError("TensorPath got a network without vision, expected one that reads images.")
        self.network, self.marks = network, Marks(*marks)
        self.steps, self.seed, self.reads = steps, seed, reads
        self.shift = network.timestep_shift if shift is None else shift
        self.guidance = flow.Guidance(text=guidance)
        self.instruction = torch.as_tensor(instruction, dtype=torch.long).cpu()  # (n,); no weight

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles: this path, traced for square pictures of the largest canvas."""
        return FixedPath(self)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """(N, 1 | 3, H, W) in [0, 1] -> (N, 3, H, W) in [0, 1], of the same type

        Raises:
            ValueError: another shape, or not floats; values far from [0, 1], where nothing is traced.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3) or not image.is_floating_point():
            raise ValueError(
                f"TensorPath got {image.dtype} of shape {tuple(image.shape)}, expected floats "
                "(N, 1 | 3, H, W) in [0, 1]: convert it."
            )
        weight = self.network.decoder.embed.weight
        height, width = _grid(image, 1)
        exporting = torch.compiler.is_exporting()
        if image.numel() and not (exporting or torch.compiler.is_compiling() or torch.jit.is_tracing()):
            low, high = (float(x) for x in image.as_subclass(Tensor).aminmax())
            if not (low >= -NEAR and high <= 1 + NEAR):  # NaN is refused too
                raise ValueError(
                    f"TensorPath got values in [{low:g}, {high:g}], expected [0, 1]: use a recipe, or scale "
                    "them."
                )
        source = image if exporting else image.as_subclass(Tensor)  # no MetaTensor, but what exporters put
        source = source.to(weight).expand(-1, 3, -1, -1).clamp(0, 1)  # (N, 3, H, W)
        if exporting:
            return draw(self, source, self._planned((height, width))).to(image.dtype)
        canvases = self._resized(source, self.fitted("canvas", height, width)) * 2 - 1
        views = self._resized(source, self.fitted("view", height, width)) * 2 - 1
        samples = [self._read(canvas, view) for canvas, view in zip(canvases, views, strict=True)]
        if self.guidance.text > 1:  # the same without words
            samples += [[part for part in parts if not isinstance(part, Text)] for parts in samples]
        cache = KVCache(self.network.decoder, len(samples), 256)
        samples = self.network.encode(samples)
        self.network(pack(samples, self.marks).to(weight.device), cache)
        grid = _grid(canvases, self.network.canvas_stride)
        drawn = [self.network.decode(x, grid) for x in self._draw(samples, cache, grid)]
        return self._resized(torch.stack(drawn), (height, width)).to(image.dtype)

    def _read(self, canvas: Tensor, view: Tensor) -> list[Segment]:
        """Pictures (3, h, w) in [-1, 1] and the words, as segments."""
        if not self.reads:
            return [Text(self.instruction)]
        stride, patch = self.network.canvas_stride, self.network.vision.patch_size  # type: ignore[union-attr]
        return [
            Canvas(_grid(canvas, stride), image=canvas),
            View(patchify(view, patch), _grid(view, patch)),
            Text(self.instruction),
        ]

    def _draw(
        self, samples: Sequence[Sequence[Segment]], cache: KVCache, grid: tuple[int, int]
    ) -> Sequence[Tensor]:
        """Euler steps from noise, behind the samples that the cache holds: N latents (h*w, C)."""
        branches = 2 if self.guidance.text > 1 else 1
        weight, tokens = self.network.decoder.embed.weight, grid[0] * grid[1]
        count = len(cache.lengths) // branches
        noise = self.noise(grid)
        precise = torch.promote_types(weight.dtype, torch.float32)
        x = noise.to(weight.device, precise).repeat(count, 1)  # (Z, C)
        blank = [based([Canvas(grid, noise, noisy=True)], bases(segments)) for segments in samples]
        seq = pack(blank, self.marks, start=cache.positions).to(weight.device)
        times = flow.schedule(self.steps, self.shift).tolist()
        for t, t_next in zip(times[:-1], times[1:], strict=True):
            latents = torch.cat([x] * branches)
            seq = seq.with_latents(latents, x.new_full((len(latents),), t, dtype=torch.float32))
            velocity = self.network(seq, cache, keep=False).velocity.to(x)
            if branches == 2:
                full, wordless = (part.split(tokens) for part in velocity.chunk(2))
                each = [self.guidance.combine(*pair, None) for pair in zip(full, wordless, strict=True)]
                velocity = torch.cat(each)
            x = flow.step(x, velocity, t, t_next)
        return x.split(tokens)

    def noise(self, grid: tuple[int, int]) -> Tensor:
        """Where each drawing starts: (h*w, C)"""
        return _noise(grid[0] * grid[1], self.network.latent_size, self.seed)

    def _planned(self, size: tuple[int, int]) -> Plan:
        """The plan for pictures of a size, worked out in a thread of its own, as what an exporter puts in
        the place of tensors holds for the thread that it began in."""
        with ThreadPoolExecutor(1) as aside:
            return aside.submit(Plan.of, self, size).result()

    def fitted(self, use: str, height: int, width: int) -> tuple[int, int]:
        """The size that the network's rule for "canvas" or "view" gives: (height, width) -> (h, w)."""
        longest, shortest, stride = self.network.grids[use]
        scale = max(min(longest / max(height, width), 1.0), shortest / min(height, width))
        down, across = (
            min(max(round(side * scale / stride), 1), longest // stride) * stride for side in (height, width)
        )
        return down, across

    def _resized(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, h, w); the same where the size is right."""
        if tuple(image.shape[2:]) == size:
            return image
        return interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


class FixedPath(nn.Module):
    """A `TensorPath` as one traced graph, with torch operations alone: it can be scripted and saved.

    Other sizes than the traced one are resized where the path itself would do so, and refused elsewhere.
    """

    def __init__(self, path: TensorPath) -> None:
        super().__init__()
        longest, shortest, stride = path.network.grids["canvas"]
        self.side, self.only = longest // stride * stride, longest == shortest
        device = path.network.decoder.embed.weight.device
        example = torch.linspace(0, 1, 3 * self.side**2, device=device).view(1, 3, self.side, self.side)
        with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # sizes become constants, as they should
            path.eval()(example)  # draws the noise
            self.traced = torch.jit.trace(path, example, check_trace=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1 | 3, H, W) in [0, 1] -> (N, 3, H, W) in [0, 1]"""
        height, width = image.shape[2], image.shape[3]
        if image.shape[1] == 1:
            image = image.expand(-1, 3, -1, -1)
        if (height != self.side or width != self.side) and not self.only:
            raise ValueError(
                "the exported path draws squares of one size: resize the picture, or use Python."
            )
        with torch.no_grad():
            fitted = self._resized(image, self.side, self.side)
            drawn = [self.traced(fitted[n : n + 1]) for n in range(fitted.shape[0])]
            return self._resized(torch.cat(drawn), height, width).to(image.dtype)

    def _resized(self, image: Tensor, height: int, width: int) -> Tensor:
        if image.shape[2] == height and image.shape[3] == width:
            return image
        return interpolate(image, [height, width], mode="bicubic", antialias=True).clamp(0, 1)


@lru_cache(maxsize=8)
def _noise(tokens: int, size: int, seed: int) -> Tensor:
    """(Z, C), the same for the same seed; kept, so that a trace takes it as a constant."""
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _grid(image: Tensor, stride: int) -> tuple[int, int]:
    """Rows and columns of cells, as plain numbers while traced too: (..., H, W) -> (H/stride, W/stride)"""
    return int(image.shape[-2]) // stride, int(image.shape[-1]) // stride
