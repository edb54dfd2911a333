# SPDX-License-Identifier: Apache-2.0
"""The verbs that run the model: ask, report, draw, edit, segment; each does one request.

`options` are those of the command line, with `images` and `prompt` of this request.
"""

from __future__ import annotations

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl import bundle, provenance, weights
from monai_unimedvl.cli.case import files_of, known_of
from monai_unimedvl.cli.command import Result, note
from monai_unimedvl.cli.options import PLANES
from monai_unimedvl.cli.reading import Reading, device, one_volume, place, read_images, volume_recipe
from monai_unimedvl.cli.writing import (
    ending_of,
    format_of,
    outputs,
    write_answer,
    write_drawing,
    write_edit,
    write_labels,
    write_volume,
    wrote,
)
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS, shades_of
from monai_unimedvl.evaluation.asking import DRAWING, EDITING
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.inferers.outputs import Grey, Labels
from monai_unimedvl.inferers.volume import VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.provenance.dicom import known_in
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.dicom import series_uids
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.identifiers import scrub
from monai_unimedvl.transforms.masks import UNCERTAIN, ColoursToLabels
from monai_unimedvl.transforms.pruning import PruneTokens
from monai_unimedvl.transforms.slices import plane_of
from monai_unimedvl.transforms.structured import parse_report

AT_ONCE = 8  # slices that are asked about in one batch
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
        parts, quantize: see `weights.load`.
    """

    def __init__(
        self,
        name: str,
        where: str = "cpu",
        *,
        parts: tuple[str, ...] = weights.DRAWING,
        quantize: str | None = None,
    ) -> None:
        self.name, self.where, self.parts, self.quantize = name, where, parts, quantize

    @classmethod
    def of(cls, options: Namespace) -> Model:
        """What a verb needs of a model: answering neither draws nor encodes."""
        answers = options.verb in ("ask", "report")
        return cls(
            options.model, options.device, parts=weights.ANSWERING if answers else weights.DRAWING,
            quantize=getattr(options, "quantize", None),
        )  # fmt: skip

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
        return bundle.load(self.name, device=device(self.where), parts=self.parts, quantize=self.quantize)


def ask(options: Namespace, model: Model) -> Result:
    """What is said about images: an answer or a description, of all together or slice by slice."""
    question = prompt_of(options)
    path = None if options.out is None and options.format is None else outputs(options)[0]
    infer = speaker(options, model.tokenizer)
    reading = _read(options, model.network)
    known = known_of(options, model.network)
    shown = [[one] for one in reading.pictures] if options.per_slice else [reading.pictures]
    prompts = [known.prompt(pictures, question) for pictures in shown]
    asked = " ".join(part for part in prompts[0] if isinstance(part, str))
    groups = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
    answers = [answer for group in groups for answer in infer(group, model.network)]
    for answer in answers:
        if answer.stop_reason != "end":
            said = f"an answer was cut at {len(answer.ids)} tokens ({answer.stop_reason}); --max-words allows"
            note(options, f"{said} more")
    places = [place(picture.meta["source"]) for picture in reading.pictures]
    text = answers[0].text
    if options.per_slice:
        text = "\n".join(f"{where}: {answer}" for where, answer in zip(places, answers, strict=True))
    text, asked = _without_names(options, text, asked)
    inputs = [*reading.inputs, *known.inputs]
    facts = Facts(
        asked, options.seed, model.digest, options.verb, inputs, reading.slices, sources=reading.sources
    )
    parsed = parse_report(text, reading.pictures[:1])
    values: dict[str, Any] = {
        "answer": text,
        "stop_reason": next((a.stop_reason for a in answers if a.stop_reason != "end"), "end"),
        "logprob": sum(sum(answer.logprobs) for answer in answers),
        "report": {"findings": list(parsed.findings), "impression": parsed.impression},
        "regions": list(parsed.regions),
    }
    values |= {**_told(reading), "manifest": facts.manifest()}
    lines = [text]
    for found in parsed.regions:  # boxes in the answer, led back to the source
        place_in_mm = f", mm {found['mm']}" if "mm" in found else ""
        lines.append(f"region {found['label'] or '-'}: pixels {found['pixels']}{place_in_mm}")
    if path is not None:
        write_answer(parsed, text, path, facts, options)
        values["outputs"] = [str(path)]
        lines.append(wrote(path))
    return lines, values


report = ask  # what differs are the words, which `prompt_of` knows


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
        write_drawing(image, path, facts, options)
        lines.append(f"wrote {path} (synthetic, seed {facts.seed}) and {provenance.manifest_path(path).name}")
        values["outputs"].append(str(path))
        values.setdefault("manifest", facts.manifest())
    return lines, values


def edit(options: Namespace, model: Model) -> Result:
    """One image out of another, or a volume out of a volume."""
    instruction, task = prompt_of(options), options.task or "edit"
    (path,) = outputs(options)
    if options.whole:
        shades = Grey(bounds=shades_of(instruction))
        volume, facts, said = _volume(options, model, instruction, task, shades)
        write_volume(volume, path, facts, options)
        values = volume.meta["shades"]
    else:
        reading, drawn, facts = _edited(options, model, instruction, task)
        picture, said = reading.pictures[0], _told(reading)
        shown = put_back(drawn, picture, until="SquarePixels")
        write_edit(shown, put_back(drawn, picture), path, facts, options)
        values = (0.0, 1.0)
    lines = [wrote(path)]
    if format_of(options) == "nifti":  # the only one that holds values, and says nowhere what they mean
        said["shades"] = values
        lines.append("values: {:g} is black, {:g} is white".format(*values))
    return lines, {"outputs": [str(path)], **said, "manifest": facts.manifest()}


def segment(options: Namespace, model: Model) -> Result:
    """A mask: labels, and of a single slice the colours as drawn; far from every colour is "uncertain"."""
    task = f"seg-{options.task}"
    (path,) = outputs(options)
    legend, made = LEGENDS[task], [path]
    if options.whole:
        labels, facts, said = _volume(options, model, prompt_of(options), task, Labels(legend))
        write_volume(labels, path, facts, options, legend)
    else:
        reading, drawn, facts = _edited(options, model, prompt_of(options), task)
        picture, said = reading.pictures[0], _told(reading)
        drawn_labels = ColoursToLabels(legend).labels(drawn.cpu())  # (h, w)
        shown = put_back(drawn_labels, picture, until="SquarePixels").to(torch.uint8)  # (H, W)
        labels = put_back(drawn_labels, picture).to(torch.uint8)
        made.append(path.with_name(f"{path.name.removesuffix(ending_of(options))}-colours.png"))
        write_labels(shown, labels, path, facts, options, legend)
        provenance.save_image(put_back(drawn, picture, until="SquarePixels"), made[1], facts)
        labels = shown if path.suffix == ".png" else labels
    plain = labels.as_subclass(Tensor)
    numbers = {name: n for n, name in enumerate([*legend, UNCERTAIN], 1)}
    pixels = {name: int((plain == n).sum()) for name, n in numbers.items()}
    if not pixels[UNCERTAIN]:
        del pixels[UNCERTAIN], numbers[UNCERTAIN]
    unit = "voxels" if options.whole else "px"
    lines = [wrote(one) for one in made]
    lines.append("labels: " + ", ".join(f"{n} {name} ({pixels[name]} {unit})" for name, n in numbers.items()))
    values = {"outputs": list(map(str, made)), "legend": numbers, "pixels": pixels}
    return lines, {**values, **said, "manifest": facts.manifest()}


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
    share = getattr(options, "prune", None)
    return TextInferer(
        tokenizer, max_new_tokens=options.max_words, temperature=options.temperature, seed=options.seed,
        think=options.think, prune=None if share is None else PruneTokens(share),
    )  # fmt: skip


def _edited(options: Namespace, model: Model, instruction: str, task: str) -> tuple[Reading, Tensor, Facts]:
    """The one picture that was read, what was drawn from it (3, h, w), and its facts."""
    steps, guidance = settings(options)
    reading = _read(options, model.network, one=True)
    infer = ImageInferer(
        model.tokenizer, steps=steps, seed=options.seed, guidance=guidance, progress=not options.quiet
    )
    (drawn,) = infer([[reading.images[0], instruction]], model.network)
    (said,) = _without_names(options, instruction)
    facts = Facts(
        said, options.seed, model.digest, task, reading.inputs, reading.slices,
        steps, guidance.text, guidance.image, reading.sources,
    )  # fmt: skip
    return reading, drawn, facts


def _volume(
    options: Namespace, model: Model, instruction: str, task: str, output: Grey | Labels
) -> tuple[MetaTensor, Facts, dict[str, Any]]:
    """Every slice of the volume that was named, drawn and put back: (1, X, Y, Z), its facts and remarks."""
    steps, guidance = settings(options)
    if options.slice or options.count:
        raise ValueError("--slice and --count choose slices, but --whole takes them all: leave one out.")
    (path,) = options.images
    one_volume(path, options)
    chain, remark = volume_recipe(path, options, model.network)
    planes = PLANES if options.fuse_planes else (options.plane or PLANES[0],)
    infer = VolumeInferer(
        ImageInferer(model.tokenizer, steps=steps, seed=options.seed, guidance=guidance),
        chain, planes=planes, output=output, progress=not options.quiet,
    )  # fmt: skip
    note(options, remark)
    made = infer(path, model.network, instruction)
    assert isinstance(made, MetaTensor)
    (said,) = _without_names(options, instruction)
    facts = Facts(
        said, options.seed, model.digest, task, [provenance.sha256(path)], (),
        steps, guidance.text, guidance.image, series_uids(Path(path)),
    )  # fmt: skip
    seen = dict.fromkeys(plane_of(made.shape[1:], made.affine.numpy(), plane) for plane in planes)
    return made, facts, {"read": [f"every {plane} slice" for plane in seen], "notes": [remark]}


def _read(options: Namespace, network: UniMedVL, one: bool = False) -> Reading:
    reading = read_images(options.images, options, network, one=one)
    for line in reading.notes:
        note(options, line)
    return reading


def _without_names(options: Namespace, *said: str) -> list[str]:
    """Words without what the DICOM headers of this request know of the patient, unless that is kept."""
    if getattr(options, "keep_identity", False):
        return list(said)
    known = known_in([*options.images, *files_of(options)])
    return [scrub(words, known) for words in said]


def _told(reading: Reading) -> dict[str, Any]:
    return {"read": [place(picture.meta["source"]) for picture in reading.pictures], "notes": reading.notes}
