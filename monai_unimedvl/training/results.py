# SPDX-License-Identifier: Apache-2.0
"""What a MONAI engine has made, into files that are marked as synthetic and named after their input."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import Tensor

from monai_unimedvl.inferers import InterleavedInferer
from monai_unimedvl.provenance import Facts, save_image, save_text, sha256
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.transforms.image import meta_of

FILE = "filename_or_obj"  # where MONAI's meta keeps it
_NOWHERE: tuple[Path | None, int] = (None, -1)

logger = logging.getLogger(__name__)


class SaveResults:
    """Handler: writes answers as JSON and drawings as PNG, marked as synthetic, named after their input.

    What a prompt got several of (`InterleavedInferer`, `GroupInferer`) are files numbered from 1.
    Seed, steps and guidance are read from the engine's inferer, the words from the prompts.

    Args:
        folder: where to; made if need be.
        name: what is added to the name of the input, as in `slice-answer.json`.
        weights: sha256 of the model's weights (`bundle.digest`).
        task: in the manifest; None takes `name`.
        image: key of the pictures, whose meta names their files.
    """

    def __init__(
        self, folder: str | Path, name: str, *, weights: str, task: str | None = None,
        image: str = "image",
    ) -> None:  # fmt: skip
        self.folder, self.name, self.weights = Path(folder), name, weights
        self.task, self.image = task or name, image
        self.written: list[Path] = []

    def attach(self, engine: Engine) -> None:
        """Run after each iteration of the engine; a new run may write the same names again."""
        engine.add_event_handler(Events.STARTED, lambda _: self.written.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the predictions of the last batch."""
        batch, output = engine.state.batch, dict(engine.state.output)  # type: ignore[call-overload]
        sources = _sources(batch.get(self.image) if isinstance(batch, Mapping) else None)
        prompts, predictions = output[CommonKeys.IMAGE], output[CommonKeys.PRED]
        for place, (prompt, made) in enumerate(zip(prompts, predictions, strict=True)):
            file, index = sources[place] if sources else _NOWHERE
            facts = self._facts(engine.inferer, place, prompt, file, index)  # type: ignore[attr-defined]
            parts = [file.name.split(".")[0] if file else "", f"{index:03d}" if index >= 0 else "", self.name]
            stem = "-".join(filter(None, parts))
            if not isinstance(made, list | tuple):
                self._write(made, stem, facts, file)
                continue
            told = _instructions(engine.inferer, len(made))  # type: ignore[attr-defined]
            for number, (part, words) in enumerate(zip(made, told, strict=True), 1):
                own = replace(facts, prompt=" ".join(filter(None, [facts.prompt, *words])))
                self._write(part, f"{stem}-{number}", own, file)

    def _write(self, made: Any, stem: str, facts: Facts, file: Path | None) -> None:
        """One answer or drawing."""
        path = self._free(stem, made)
        if isinstance(made, Tensor):
            save_image(made, path, facts)
            logger.info("%s: wrote %s", facts.prompt, path)
        else:
            save_text(str(made), path, facts)
            logger.info("%s %s -> %s", file.name if file else "", facts.prompt, made)
        self.written.append(path)

    def _facts(self, inferer: Any, place: int, prompt: Prompt, file: Path | None, index: int) -> Facts:
        guidance = getattr(inferer, "guidance", None)
        drawn = getattr(inferer, "generator", None) is not None  # then `seed` is a default that nothing used
        seed = inferer.drawn_from if drawn else getattr(inferer, "seed", 0)
        return Facts(
            prompt=" ".join(part for part in prompt if isinstance(part, str)),
            seed=seed if isinstance(seed, int) else seed[place],
            weights=self.weights,
            task=self.task,
            inputs=[sha256(file)] if file is not None and file.exists() else [],
            slices=[index] if index >= 0 else [],
            steps=getattr(inferer, "steps", None),
            text_guidance=getattr(guidance, "text", None),
            image_guidance=getattr(guidance, "image", None),
        )

    def _free(self, stem: str, made: Any) -> Path:
        """A name that this run has not written yet: a.png and a.jpg both want a-drawing.png."""
        ending, count = ".png" if isinstance(made, Tensor) else ".json", 1
        path = self.folder / f"{stem}{ending}"
        while path in self.written:
            count += 1
            path = self.folder / f"{stem}-{count}{ending}"
        return path


def _instructions(inferer: Any, count: int) -> list[list[str]]:
    """What an `InterleavedInferer` was told beside the prompt, up to each of its outputs; else nothing."""
    outputs = inferer.outputs if isinstance(inferer, InterleavedInferer) else []
    return [[words for _, words in outputs[: n + 1] if words] for n in range(count)]


def _sources(images: Any) -> list[tuple[Path | None, int]]:
    """(file, slice or -1) of each picture of a batch, as far as its meta names them."""
    names, slices = meta_of(images, FILE), meta_of(images, "slice")
    names = [names] if isinstance(names, str) else list(names or [])
    indexes = [-1] * len(names) if slices is None else torch.as_tensor(slices).flatten().tolist()
    return [(Path(name), index) for name, index in zip(names, indexes, strict=True)]
