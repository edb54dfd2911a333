# SPDX-License-Identifier: Apache-2.0
"""The verbs that run the model: ask, report, draw, edit, segment."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
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


def ask(options: Namespace) -> Result:
    """An answer to a question about images."""
    if not options.question.strip():
        raise ValueError("the question is empty, but some words are expected: ask something.")
    return _answer(options, options.question, "ask")


def report(options: Namespace) -> Result:
    """A description of images."""
    prompt = INSTRUCTIONS["caption"] if options.prompt is None else options.prompt
    if not prompt.strip():
        raise ValueError("--prompt is empty, but some words are expected: leave it out for a description.")
    return _answer(options, prompt, "report")


def draw(options: Namespace) -> Result:
    """Images from words."""
    if not options.words.strip():
        raise ValueError("the words are empty, but a description of the image is expected: say what to draw.")
    paths = _outputs(options, "drawn", options.count)
    steps, guidance = _settings(options, DRAWING)
    network, tokenizer = _open(options)
    infer = ImageInferer(
        tokenizer, size=options.size, steps=steps, guidance=guidance, progress=not options.quiet,
        seed=[options.seed + i for i in range(options.count)],
    )  # fmt: skip
    images = infer([[options.words]] * options.count, network)
    values: dict[str, Any] = {"outputs": []}
    lines = []
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        facts = Facts(
            options.words, options.seed + i, bundle.digest(options.model), "draw",
            steps=steps, text_guidance=guidance.text, image_guidance=guidance.image,
        )  # fmt: skip
        provenance.save_image(image, path, facts)
        lines.append(f"wrote {path} (synthetic, seed {facts.seed}) and {provenance.manifest_path(path).name}")
        values["outputs"].append(str(path))
        values.setdefault("manifest", facts.manifest())
    return lines, values


def edit(options: Namespace) -> Result:
    """One image out of another."""
    if (options.instruction is None) == (options.task is None):
        raise ValueError("give either an instruction in words or --task, and not both.")
    instruction = INSTRUCTIONS[options.task] if options.task else options.instruction
    if not instruction.strip():
        raise ValueError("the instruction is empty, but some words are expected: say what to do.")
    (path,) = _outputs(options, "edited", 1, (".png", ".nii", ".nii.gz"))
    network, reading, drawn, facts = _edited(options, instruction, options.task or "edit")
    picture = reading.pictures[0]
    if path.suffix == ".png":
        provenance.save_image(put_back(drawn, picture, until="SquarePixels"), path, facts)
    else:
        whole = put_back(drawn, picture)
        provenance.save_volume(whole.mean(0)[..., None], _affine(whole), path, facts)
    return [_wrote(path)], {"outputs": [str(path)], **_told(reading), "manifest": facts.manifest()}


def segment(options: Namespace) -> Result:
    """A mask: colours as drawn, and labels."""
    task = f"seg-{options.task}"
    (path,) = _outputs(options, "mask", 1, (".png", ".nii", ".nii.gz"))
    network, reading, drawn, facts = _edited(options, INSTRUCTIONS[task], task)
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


def _answer(options: Namespace, question: str, task: str) -> Result:
    path = None if options.out is None else _outputs(options, task, 1, (".json",))[0]
    network, tokenizer = _open(options)
    reading = _read(options, options.images, network)
    infer = TextInferer(
        tokenizer, max_new_tokens=options.max_words, temperature=options.temperature, seed=options.seed,
        think=options.think,
    )  # fmt: skip
    (answer,) = infer([[*reading.images, question]], network)
    if answer.stop_reason != "end":
        note(
            options,
            f"the answer was cut at {len(answer.ids)} tokens ({answer.stop_reason}); --max-words allows more",
        )
    facts = Facts(question, options.seed, bundle.digest(options.model), task, reading.inputs, reading.slices)
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


def _edited(options: Namespace, instruction: str, task: str) -> tuple[UniMedVL, Reading, Tensor, Facts]:
    """The one picture that was read, what was drawn from it (3, h, w), and its facts."""
    steps, guidance = _settings(options, EDITING)
    network, tokenizer = _open(options)
    reading = _read(options, [options.image], network, one=True)
    infer = ImageInferer(
        tokenizer, steps=steps, seed=options.seed, guidance=guidance, progress=not options.quiet
    )
    (drawn,) = infer([[reading.images[0], instruction]], network)
    facts = Facts(
        instruction, options.seed, bundle.digest(options.model), task, reading.inputs, reading.slices,
        steps, guidance.text, guidance.image,
    )  # fmt: skip
    return network, reading, drawn, facts


def _open(options: Namespace) -> tuple[UniMedVL, Tokenizer]:
    where = device(options.device)
    return bundle.load(options.model, device=where)


def _read(options: Namespace, paths: list[str], network: UniMedVL, one: bool = False) -> Reading:
    reading = read_images(paths, options, network, one=one)
    for line in reading.notes:
        note(options, line)
    return reading


def _settings(options: Namespace, default: Drawing) -> tuple[int, Guidance]:
    """Steps and guidance.

    Raises:
        ValueError: a weight below 1, or one for the image alone, which would do nothing.
    """
    text = default.guidance if options.guidance is None else options.guidance
    image = 1.0 if options.image_guidance is None else options.image_guidance
    if image > 1 and text == 1:
        raise ValueError(f"--image-guidance {image:g} acts only with --guidance above 1: raise both or none.")
    return options.steps or default.steps, Guidance(text=text, image=image)


def _outputs(options: Namespace, name: str, count: int, endings: tuple[str, ...] = (".png",)) -> list[Path]:
    """Where to write: --out, numbered where there are several; else a name that is free.

    Raises:
        ValueError: an ending that cannot be written, or a file that is an input.
    """
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
    given = [getattr(options, "image", None), *getattr(options, "images", [])]
    if any(
        source and Path(source).exists() and first.resolve() == Path(source).resolve() for source in given
    ):
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
