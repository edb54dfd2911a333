# SPDX-License-Identifier: Apache-2.0
"""What a network is asked, batch by batch, and what it made of it, kept on disk so that a killed run goes on.

A benchmark is a list of named requests. Who answers them is an engine: this process, one after the other, or
several workers (`cli.evaluate`). Each answer is laid on the disk whole before the next is asked for, so a run
that was killed asks nothing twice, and its numbers are those of a run that was not.
  n prompts of a request   H, W pixels
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unimedvl.atomic import write
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

FOLDER = "made"  # in the folder of a report, until the report is written
RUN = "run.json"  # what all that lies beside it was made with


@dataclass(frozen=True)
class Drawing:
    """How images are drawn from words: network evaluations, and weight against the prompt without words."""

    steps: int = 20
    guidance: float = 2.0

    def __str__(self) -> str:
        words = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        return f"{words}, guidance {self.guidance:g}" if self.guidance > 1 else words


# How the scores of the shipped bundle were measured, and so what every door does where nothing is said.
DRAWING, EDITING = Drawing(), Drawing(2, 1.0)


@dataclass(frozen=True)
class Request:
    """A batch of prompts, as it is put to the network.

    Args:
        prompts: as the inferers take them.
        words: new tokens at most; 0 asks for images.
        size: of the images; `drawing`: how; `seeds`: of each.
    """

    prompts: Sequence[Sequence[Any]]
    words: int = 0
    size: tuple[int, int] = (0, 0)
    drawing: Drawing | None = None
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Said:
    """What the model said to one prompt: the sum of the log-probabilities of its tokens, and their number."""

    text: str
    logprob: float | None
    tokens: int | None
    stop_reason: str


@dataclass(frozen=True)
class Made:
    """Answers to a request: n texts, or images (n, 3, H, W) uint8."""

    said: tuple[Said, ...] = ()
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.said) if self.images is None else len(self.images)


Build = Callable[[str], Request]  # the name of a request -> the request
Engine = Callable[[Sequence[str], Build], Iterator[tuple[str, Made]]]


def ask(network: UniMedVL, tokenizer: Tokenizer, request: Request) -> Made:
    """Put one request to a network.

    Raises:
        ValueError: an image with pixels that are no numbers.
    """
    prompts = [list(prompt) for prompt in request.prompts]
    if request.words:
        answers = TextInferer(tokenizer, max_new_tokens=request.words)(prompts, network)
        return Made(tuple(
            Said(str(one), sum(one.logprobs) if one.logprobs else None, len(one.logprobs) or None,
                 one.stop_reason)
            for one in answers
        ))  # fmt: skip
    how = request.drawing or Drawing()
    inferer = ImageInferer(
        tokenizer, size=request.size, steps=how.steps, guidance=Guidance(text=how.guidance),
        seed=list(request.seeds),
    )  # fmt: skip
    drawn = torch.stack(inferer(prompts, network)).cpu().float()  # (n, 3, H, W)
    if not bool(torch.isfinite(drawn).all()):
        at = int((~torch.isfinite(drawn)).flatten(1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"Image {at} of a request was drawn with pixels that are no numbers: check the weights with "
            "`unimedvl doctor`, or run in float32."
        )
    return Made(images=(drawn.clamp(0, 1) * 255).round().to(torch.uint8))


def here(network: UniMedVL, tokenizer: Tokenizer) -> Engine:
    """The engine that asks in this process, in the order given."""

    def engine(names: Sequence[str], build: Build) -> Iterator[tuple[str, Made]]:
        for name in names:
            yield name, ask(network, tokenizer, build(name))

    return engine


class Kept:
    """What was made so far, one file a request, beside what it was made with.

    Args:
        folder: of the report; None keeps nothing.
        run: what the answers depend on, JSON-able: weights, seed, items, settings; None does not look.

    Raises:
        ValueError: the folder holds answers of another run.
    """

    def __init__(self, folder: str | Path | None, run: Mapping[str, Any] | None) -> None:
        self.folder = None if folder is None else Path(folder) / FOLDER
        self.found = 0
        if self.folder is None or run is None:
            return
        told = json.dumps(dict(run), sort_keys=True, indent=1) + "\n"
        file = self.folder / RUN
        if file.is_file() and file.read_text("utf8") != told:
            before = json.loads(file.read_text("utf8"))
            names = [name for name in run if json.dumps(before.get(name)) != json.dumps(run[name])]
            raise ValueError(
                f"{self.folder} holds answers of a run with another {' and '.join(names) or 'setting'}: "
                "finish that run with its own command, remove the folder, or choose another --out."
            )
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write(file, told)

    def get(self, name: str) -> Made | None:
        """The answers to a request, if they are there whole."""
        if self.folder is None:
            return None
        file = self.folder / _file(name)
        if file.with_suffix(".json").is_file():
            said = json.loads(file.with_suffix(".json").read_text("utf8"))
            self.found += 1
            return Made(tuple(Said(**one) for one in said))
        if file.with_suffix(".safetensors").is_file():
            from safetensors.torch import load_file

            self.found += 1
            return Made(images=load_file(file.with_suffix(".safetensors"))["images"])
        return None

    def put(self, name: str, made: Made) -> None:
        """Lay answers on the disk, whole or not at all."""
        if self.folder is None:
            return
        file = self.folder / _file(name)
        if made.images is None:
            words = json.dumps([asdict(one) for one in made.said], ensure_ascii=False)
            write(file.with_suffix(".json"), words)
        else:
            from safetensors.torch import save

            write(file.with_suffix(".safetensors"), save({"images": made.images.contiguous()}))

    def clear(self) -> None:
        """Remove what was kept: the report holds it now."""
        if self.folder is not None and self.folder.is_dir():
            shutil.rmtree(self.folder)


def weights_hash(network: nn.Module) -> str:
    """sha256 of the names, types, shapes and bytes of all weights of a network, as it is loaded."""
    lines = []
    for name, x in sorted(network.state_dict().items()):
        made = hashlib.sha256(f"{name} {x.dtype} {list(x.shape)} ".encode())
        if x.numel():
            made.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        lines.append(made.hexdigest())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file(name: str) -> str:
    return name.replace("/", "-").replace(" ", "_").replace(",", "").replace(".", "_")
