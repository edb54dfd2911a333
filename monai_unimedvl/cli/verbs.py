# SPDX-License-Identifier: Apache-2.0
"""The verbs that run the model: ask, report, draw, edit, segment; each does one request.

`options` are those of the command line, with `images` and `prompt` of this request.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl import bundle, provenance
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.reading import Reading, device, place, read_images
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.evaluation.benchmarks import EDIT_STEPS, Drawing
from monai_unimedvl.evaluation.image import labels_from_colours
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.geometry import put_back

# Where the command line names nothing: as the bundle's scores were measured.
DRAWING, EDITING = Drawing(), Drawing(EDIT_STEPS[0], 1.0)
ENDINGS = {
    "ask": (".json",),
    "report": (".json",),
    "draw": (".png",),
    "edit": (".png", ".nii", ".nii.gz"),
    "segment": (".png", ".nii", ".nii.gz"),
}
NAMES = {"ask": "ask", "report": "report", "draw": "drawn", "edit": "edited", "segment": "mask"}
EMPTY = {
    "ask": "the question is empty, but some words are expected: ask something.",
    "report": "--prompt is empty, but some words are expected: leave it out for a description.",
    "draw": "the words are empty, but a description of the image is expected: say what to draw.",
    "edit": "the instruction is empty, but some words are expected: say what to do.",
}


class Model:
    """A bundle on a device, opened when it is first needed and then kept.

    Args:
        name: bundle or folder of weights.
        where: name of the device.
    """

    def __init__(self, name: str, where: str = "cpu") -> None:
        self.name, self.where = name, where

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights."""
        return bundle.digest(self.name)

    @property
    def network(self) -> UniMedVL:
        """The network, on its device."""
        return self._opened[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[UniMedVL, Tokenizer]:
        return bundle.load(self.name, device=device(self.where))


def ask(options: Namespace, model: Model) -> Result:
    """An answer to a question about images."""
    return _answer(options, model, prompt_of(options))


def report(options: Namespace, model: Model) -> Result:
    """A description of images."""
    return _answer(options, model, prompt_of(options))


def draw(options: Namespace, model: Model) -> Result:
    """Images from words."""
    words = prompt_of(options)
    paths = outputs(options)
    steps, guidance = settings(options)
    infer = ImageInferer(
        model.tokenizer, size=options.size, steps=steps, guidance=guidance, progress=not options.quiet,
        seed=[options.seed + i for i in range(options.count)],
    )  # fmt: skip
    images = infer([[words]] * options.count, model.network)
    values: dict[str, Any] = {"outputs": []}
    lines = []
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        facts = Facts(
            words, options.seed + i, model.digest, "draw",
            steps=steps, text_guidance=guidance.text, image_guidance=guidance.image,
        )  # fmt: skip
        provenance.save_image(image, path, facts)
        lines.append(f"wrote {path} (synthetic, seed {facts.seed}) and {provenance.manifest_path(path).name}")
        values["outputs"].append(str(path))
        values.setdefault("manifest", facts.manifest())
    return lines, values


def edit(options: Namespace, model: Model) -> Result:
    """One image out of another."""
    instruction = prompt_of(options)
    (path,) = outputs(options)
    reading, drawn, facts = _edited(options, model, instruction, options.task or "edit")
    picture = reading.pictures[0]
    if path.suffix == ".png":
        provenance.save_image(put_back(drawn, picture, until="SquarePixels"), path, facts)
    else:
        whole = put_back(drawn, picture)
        provenance.save_volume(whole.mean(0)[..., None], _affine(whole), path, facts)
    return [_wrote(path)], {"outputs": [str(path)], **_told(reading), "manifest": facts.manifest()}


def segment(options: Namespace, model: Model) -> Result:
    """A mask: colours as drawn, and labels."""
    task = f"seg-{options.task}"
    (path,) = outputs(options)
    reading, drawn, facts = _edited(options, model, prompt_of(options), task)
    picture, drawn_labels = reading.pictures[0], labels_from_colours(drawn.unsqueeze(0), LEGENDS[task])[0]
    stem = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".png")
    coloured = path.with_name(f"{stem}-colours.png")
    provenance.save_image(put_back(drawn, picture, until="SquarePixels"), coloured, facts)
    if path.suffix == ".png":
        labels = put_back(drawn_labels, picture, until="SquarePixels").to(torch.uint8)  # (H, W)
        provenance.save_image(labels, path, facts)
    else:
        labels = put_back(drawn_labels, picture).to(torch.uint8)
        provenance.save_volume(labels[..., None], _affine(labels), path, facts)
    names = list(LEGENDS[task])
    counted = Counter(labels.flatten().tolist())
    legend = {names[n - 1]: n for n in range(1, len(names) + 1)}
    pixels = {name: counted.get(n, 0) for name, n in legend.items()}
    lines = [_wrote(path), _wrote(coloured)]
    lines.append("labels: " + ", ".join(f"{n} {name} ({pixels[name]} px)" for name, n in legend.items()))
    values = {"outputs": [str(path), str(coloured)], "legend": legend, "pixels": pixels}
    return lines, {**values, **_told(reading), "manifest": facts.manifest()}


def note(options: Namespace, text: str) -> None:
    """A remark on stderr."""
    if not options.quiet:
        print(text, file=sys.stderr)


def prompt_of(options: Namespace) -> str:
    """The words of a request: its own, or those of its task.

    Raises:
        ValueError: there are none, or two.
    """
    words, verb = options.prompt, options.verb
    if verb == "segment":
        return INSTRUCTIONS[f"seg-{options.task}"]
    if verb == "report":
        words = INSTRUCTIONS["caption"] if words is None else words
    if verb == "edit":
        if (words is None) == (options.task is None):
            raise ValueError("give either an instruction in words or --task, and not both.")
        words = INSTRUCTIONS[options.task] if options.task else words
    if words is None or not words.strip():
        raise ValueError(EMPTY[verb])
    return words


def settings(options: Namespace) -> tuple[int, Guidance]:
    """Steps and guidance of a drawing.

    Raises:
        ValueError: a weight below 1, or one for the image alone, which would do nothing.
    """
    default = DRAWING if options.verb == "draw" else EDITING
    text = default.guidance if options.guidance is None else options.guidance
    image = 1.0 if options.image_guidance is None else options.image_guidance
    if image > 1 and text == 1:
        raise ValueError(f"--image-guidance {image:g} acts only with --guidance above 1: raise both or none.")
    return options.steps or default.steps, Guidance(text=text, image=image)


def speaker(options: Namespace, tokenizer: Tokenizer) -> TextInferer:
    """The inferer of answers.

    Raises:
        ValueError: a temperature below 0.
    """
    return TextInferer(
        tokenizer, max_new_tokens=options.max_words, temperature=options.temperature, seed=options.seed,
        think=options.think,
    )  # fmt: skip


def _answer(options: Namespace, model: Model, question: str) -> Result:
    path = None if options.out is None else outputs(options)[0]
    infer = speaker(options, model.tokenizer)
    reading = _read(options, model.network)
    (answer,) = infer([[*reading.images, question]], model.network)
    if answer.stop_reason != "end":
        note(
            options,
            f"the answer was cut at {len(answer.ids)} tokens ({answer.stop_reason}); --max-words allows more",
        )
    facts = Facts(question, options.seed, model.digest, options.verb, reading.inputs, reading.slices)
    values: dict[str, Any] = {
        "answer": answer.text,
        "stop_reason": answer.stop_reason,
        "logprob": sum(answer.logprobs),
    }
    values |= {**_told(reading), "manifest": facts.manifest()}
    lines = [answer.text]
    if path is not None:
        provenance.save_text(answer.text, path, facts)
        values["outputs"] = [str(path)]
        lines.append(_wrote(path))
    return lines, values


def _edited(options: Namespace, model: Model, instruction: str, task: str) -> tuple[Reading, Tensor, Facts]:
    """The one picture that was read, what was drawn from it (3, h, w), and its facts."""
    steps, guidance = settings(options)
    reading = _read(options, model.network, one=True)
    infer = ImageInferer(
        model.tokenizer, steps=steps, seed=options.seed, guidance=guidance, progress=not options.quiet
    )
    (drawn,) = infer([[reading.images[0], instruction]], model.network)
    facts = Facts(
        instruction, options.seed, model.digest, task, reading.inputs, reading.slices,
        steps, guidance.text, guidance.image,
    )  # fmt: skip
    return reading, drawn, facts


def _read(options: Namespace, network: UniMedVL, one: bool = False) -> Reading:
    reading = read_images(options.images, options, network, one=one)
    for line in reading.notes:
        note(options, line)
    return reading


def outputs(options: Namespace) -> list[Path]:
    """Where to write: --out, numbered where there are several; else a name that is free.

    Raises:
        ValueError: an ending that cannot be written, or a file that is an input.
    """
    name, endings = NAMES[options.verb], ENDINGS[options.verb]
    count = options.count if options.verb == "draw" else 1
    if options.out is None:
        free = (Path(f"{name}{i or ''}{endings[0]}") for i in range(10_000))
        first = next(path for path in free if not path.exists())
    else:
        first = Path(options.out)
        if first.is_dir():
            first = first / f"{name}{endings[0]}"
    ending = next((end for end in reversed(endings) if first.name.lower().endswith(end)), None)
    if ending is None:
        raise ValueError(
            f"--out {first.name} came, but a name in {' or '.join(endings)} is expected: rename it."
        )
    if any(Path(source).exists() and first.resolve() == Path(source).resolve() for source in options.images):
        raise ValueError(
            f"--out {first.name} is the input itself, which is never overwritten: choose another name."
        )
    if count == 1:
        return [first]
    return [first.with_name(f"{first.name.removesuffix(ending)}-{i}{ending}") for i in range(count)]


def _affine(whole: Tensor) -> np.ndarray:
    """From (row, column, 0) of what was put back on its slice to RAS mm.

    Raises:
        ValueError: the slice has no place in space.
    """
    if not isinstance(whole, MetaTensor) or whole.meta["source"]["affine"] is None:
        raise ValueError("a NIfTI was asked for, but the input has no place in mm: write a .png.")
    return whole.affine.numpy()


def _told(reading: Reading) -> dict[str, Any]:
    return {"read": [place(picture.meta["source"]) for picture in reading.pictures], "notes": reading.notes}


def _wrote(path: Path) -> str:
    return f"wrote {path} (synthetic) and {provenance.manifest_path(path).name}"
