# SPDX-License-Identifier: Apache-2.0
"""From pictures to tasks: questions, captions, drawing, masks, super-resolution, translation, staining.

Words are few and fixed. Form 0 of every question and instruction is tested, and the CLI's presets say
it; training draws among the forms by seed and item id.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from monai_unimedvl.data.atlas_pictures import Picture
from monai_unimedvl.data.atlas_regions import GROUPS, REGIONS
from monai_unimedvl.data.atlas_volumes import SIDE, shrink

__all__ = [
    "DEFAULT_TASKS",
    "INSTRUCTIONS",
    "LEGENDS",
    "QUESTIONS",
    "TASKS",
    "Entry",
    "caption_of",
    "colour",
    "make_entries",
]

Image = NDArray[np.uint8]

# name of the label -> colour; label n of a map is the n-th name, 0 is black
LEGENDS: dict[str, dict[str, tuple[int, int, int]]] = {
    "seg-tissue": {"grey matter": (220, 50, 50), "white matter": (240, 240, 240), "CSF": (50, 90, 230)},
    "seg-lobes": dict(
        zip(
            GROUPS,
            [
                (230, 60, 60), (60, 180, 75), (65, 105, 225), (245, 215, 60), (240, 130, 50),
                (145, 60, 200), (70, 220, 230), (240, 60, 220), (255, 255, 255), (130, 130, 130),
            ],
            strict=True,
        )
    ),
    "seg-tumour": {"tumour": (255, 60, 60)},
    "seg-bone": {"bone": (255, 240, 200)},
    "seg-nuclei": {"nuclei": (80, 220, 255)},
}  # fmt: skip

INSTRUCTIONS: dict[str, str] = {
    "caption": "Describe this image.",
    "seg-tissue": "Segment grey matter, white matter and CSF.",
    "seg-lobes": "Colour the lobes and nuclei of the brain.",
    "seg-tumour": "Segment the tumour.",
    "seg-bone": "Segment the bone.",
    "seg-nuclei": "Segment the nuclei.",
    "sr4": "Sharpen this image four times.",
    "t1-to-t2": "Turn this T1 MRI into T2.",
    "t1-to-pd": "Turn this T1 MRI into PD.",
    "t2-to-t1": "Turn this T2 MRI into T1.",
    "t1-to-gm": "Turn this T1 MRI into a grey matter map.",
    "ct-to-bone": "Show this CT in the bone window.",
    "h-to-he": "Turn this haematoxylin stain into H&E.",
    "h-to-ihc": "Turn this haematoxylin stain into IHC.",
}
_OTHER_FORMS: dict[str, tuple[str, ...]] = {
    "caption": ("What does this image show?", "Write a short description."),
    "seg-tissue": ("Draw the tissue map: grey matter, white matter, CSF.",),
    "seg-tumour": ("Draw the tumour mask.",),
    "seg-bone": ("Draw the bone mask.",),
    "seg-nuclei": ("Draw the mask of the nuclei.",),
    "sr4": ("Draw this image at four times the resolution.",),
    "t1-to-t2": ("Draw the T2 contrast of this slice.",),
    "t1-to-pd": ("Draw the PD contrast of this slice.",),
    "t2-to-t1": ("Draw the T1 contrast of this slice.",),
    "h-to-he": ("Stain this with H&E.",),
    "h-to-ihc": ("Stain this with IHC.",),
}
# What black and white of a drawing stand for, where that is not what they are in the source.
SHADES: dict[str, tuple[float, float]] = {
    "t1-to-gm": (0.0, 1.0),  # share of grey matter
    "ct-to-bone": (-500.0, 1500.0),  # HU
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "contrast": ("Which contrast or stain is this?", "What kind of image is this?"),
    "plane": ("Which plane is this?", "In which plane is this slice?"),
    "body": ("Which part of the body is shown?", "What body region is this?"),
    **{
        f"region: {name}": (f"Is the {name} visible?", f"Does this slice show the {name}?")
        for name in REGIONS
    },
    "level": ("Is this slice below, at or above the lateral ventricles?",),
    "midline": ("Is this slice near the midline or lateral?",),
    "half": ("Is this slice in the front or the back half of the brain?",),
    "csf": ("Is more than 22 % of the intracranial area CSF?",),
    "tumour": ("Is a tumour visible?", "Does this slice show a tumour?"),
    "side": ("On which side is the tumour?",),
    "diameter": ("Is the tumour wider than 20 mm?",),
    "nuclei": ("How many nuclei are there: up to 7, 8 or 9, or 10 and more?",),
}

DEFAULT_TASKS = ("vqa", "caption", "text-to-image", *(task for task in INSTRUCTIONS if task != "caption"))
TASKS = (*DEFAULT_TASKS, "slice-group")
YES_AT, SURE = (
    120,
    0.01,
)  # a region is visible from 120 mm2 on; a CSF share within 0.01 of the limit is not asked


def shades_of(words: str) -> tuple[float, float] | None:
    """What black and white stand for in what an instruction makes; None where that is as in the source."""
    for task, shades in SHADES.items():
        forms = (INSTRUCTIONS[task], *_OTHER_FORMS.get(task, ()))
        if words.strip().lower() in [form.lower() for form in forms]:
            return shades
    return None


@dataclass
class Entry:
    """One item before it becomes tensors: the words, the pictures in and out, and what scores it."""

    id: str
    task: str
    picture: Picture
    words: str
    answer: str | None = None
    shown: Image | None = None
    targets: list[Image] = field(default_factory=list)
    baseline: Image | None = None
    mask: Image | None = None
    question: str = ""
    balanced: bool = False


def make_entries(pictures: list[Picture], section: str, tasks: tuple[str, ...], seed: int) -> list[Entry]:
    """All entries of one section, in a fixed order; `seed` chooses the surface forms of training."""
    chosen = [picture for picture in pictures if picture.section == section]
    entries: list[Entry] = []
    for task in tasks:
        entries += [
            _in_words(entry, section, seed) for picture in chosen for entry in _entries(task, picture)
        ]
        if task == "slice-group":
            entries += _groups(chosen)
    _mark_balanced(entries)
    return entries


def _in_words(entry: Entry, section: str, seed: int) -> Entry:
    if section == "train":
        key = entry.question or entry.task
        forms = QUESTIONS.get(key) or (entry.words, *_OTHER_FORMS.get(key, ()))
        entry.words = forms[zlib.crc32(f"{seed} {entry.id}".encode()) % len(forms)]
    return entry


def _entries(task: str, picture: Picture) -> Iterator[Entry]:
    name = f"{task}/{picture.id}"
    if task == "vqa":
        for key, answer in _answers(picture):
            yield Entry(
                f"{name}/{key.replace('region: ', '').replace(' ', '-')}",
                task,
                picture,
                QUESTIONS[key][0],
                answer,
                picture.pixels,
                question=key,
            )
    elif task == "caption":
        yield Entry(name, task, picture, INSTRUCTIONS[task], caption_of(picture), picture.pixels)
    elif task == "text-to-image":
        yield Entry(name, task, picture, caption_of(picture), targets=[picture.pixels])
    elif task == "sr4":
        if not picture.facts.get("mirrored"):
            poor = degrade(picture.pixels, fourier=picture.modality == "MRI")
            yield Entry(
                name, task, picture, INSTRUCTIONS[task], shown=poor, targets=[picture.pixels], baseline=poor
            )
    elif task in ("h-to-he", "h-to-ihc"):
        if task in picture.maps:
            stain = picture.maps[task]
            yield Entry(
                name, task, picture, INSTRUCTIONS[task], shown=stain, targets=[picture.pixels], baseline=stain
            )
    elif task in picture.maps:
        target, shown = picture.maps[task], picture.pixels
        if task not in LEGENDS:
            yield Entry(
                name, task, picture, INSTRUCTIONS[task], shown=shown, targets=[target], baseline=shown
            )
        elif target.any():
            drawn = [colour(target, task)]
            yield Entry(name, task, picture, INSTRUCTIONS[task], shown=shown, targets=drawn, mask=target)


def colour(mask: Image, task: str) -> Image:
    """A label map in the colours of its legend, (H, W) -> (H, W, 3)."""
    palette = np.array([(0, 0, 0), *LEGENDS[task].values()], dtype=np.uint8)
    return palette[mask]


def degrade(pixels: Image, *, fourier: bool) -> Image:
    """Lose four times the resolution and come back to 64 pixels by bicubic interpolation: its own baseline.

    MRI loses the outer k-space, as a shorter scan does; other images are averaged over 4 x 4 pixels.
    """
    from PIL import Image as Pil

    small = SIDE // 4
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    out = np.empty_like(channels)
    # a small pixel sits in the middle of four, 1.5 pixels after the first: without the phase all is shifted
    shift = np.exp(2j * np.pi * 1.5 * np.arange(-small // 2, small // 2) / SIDE)
    for c in range(channels.shape[-1]):
        if fourier:
            spectrum = np.fft.fftshift(np.fft.fft2(channels[..., c].astype(np.float64)))
            middle = slice(SIDE // 2 - small // 2, SIDE // 2 + small // 2)
            kept = spectrum[middle, middle] * shift[:, None] * shift
            low = np.fft.ifft2(np.fft.ifftshift(kept)).real / 16
        else:
            low = shrink(channels[..., c], small)
        large = Pil.fromarray(np.round(low, 6).astype(np.float32), mode="F").resize(
            (SIDE, SIDE), Pil.Resampling.BICUBIC
        )
        out[..., c] = np.rint(np.clip(np.round(np.asarray(large, dtype=np.float64), 3), 0, 255)).astype(
            np.uint8
        )
    return out[..., 0] if pixels.ndim == 2 else out


def caption_of(picture: Picture) -> str:
    """What is known of the picture in one or two short sentences; drawing prompts are the same words."""
    facts = picture.facts
    if picture.modality == "histology":
        return f"Histology of {facts['kind']}, {picture.contrast} stain."
    if picture.modality == "fundus photograph":
        return "Colour fundus photograph of the retina."
    if picture.modality == "microscopy":
        return f"Fluorescence microscopy, {_nuclei_bin(int(str(facts['count'])))} nuclei."
    name = picture.contrast if picture.contrast in ("PET", "SPECT", "CT") else f"{picture.contrast} MRI"
    plane = picture.plane.capitalize()
    if "tumour" in facts:
        place = "hemisphere" if facts["body"] == "head" else "lung"
        found = (
            f"Tumour in the {facts['side']} {place}, about {facts['diameter']} mm."
            if facts["tumour"]
            else "No tumour."
        )
        return f"{plane} {name} of the {facts['body']}. {found}"
    if "level" not in facts:
        kind = "" if facts["kind"] == "whole head" else f", {facts['kind']}"
        return f"{plane} {name} of the {facts['body']}{kind}."
    areas = facts.get("areas")
    seen = [region for region, area in areas.items() if area >= YES_AT] if isinstance(areas, dict) else []
    visible = f" Visible: {', '.join(seen)}." if seen else ""
    return f"{plane} {name} at the level of {facts['level']}, {facts['kind']}.{visible}"


def _nuclei_bin(count: int) -> str:
    return "up to 7" if count <= 7 else "8 or 9" if count <= 9 else "10 and more"


def _answers(picture: Picture) -> Iterator[tuple[str, str]]:
    """(question key, answer) of everything that the facts decide; what is between yes and no is not asked."""
    facts = picture.facts
    yield "contrast", picture.contrast
    if picture.plane:
        yield "plane", picture.plane
    yield "body", str(facts["body"])
    areas = facts.get("areas")
    if isinstance(areas, dict):
        for region, area in areas.items():
            if area == 0 or area >= YES_AT:
                yield f"region: {region}", "yes" if area else "no"
    if "mm" in facts:
        mm = float(str(facts["mm"]))
        bands = {
            "axial": ("level", ((-99, -6, "below"), (-2, 28, "at"), (32, 99, "above"))),
            "coronal": ("half", ((-99, -26, "back"), (-10, 99, "front"))),
            "sagittal": ("midline", ((0, 10, "midline"), (24, 99, "lateral"))),
        }
        key, edges = bands[picture.plane]
        yield from ((key, answer) for low, high, answer in edges if low <= mm <= high)
    if "csf" in facts and abs(float(str(facts["csf"])) - 0.22) > SURE:
        yield "csf", "yes" if float(str(facts["csf"])) > 0.22 else "no"
    if "tumour" in facts:
        yield "tumour", "yes" if facts["tumour"] else "no"
        if facts["tumour"]:
            yield "side", str(facts["side"])
            yield "diameter", "yes" if int(str(facts["diameter"])) > 20 else "no"
    if "count" in facts:
        yield "nuclei", _nuclei_bin(int(str(facts["count"])))


def _groups(pictures: list[Picture]) -> list[Entry]:
    """Three neighbouring slices, 4 mm apart, drawn together from the caption of the middle one."""
    at = {(p.source, p.plane, p.position): p for p in pictures if "mm" in p.facts}
    entries = []
    for (source, plane, position), middle in at.items():
        group = [at.get((source, plane, position + step)) for step in (-4.0, 0.0, 4.0)]
        if all(group):
            words = f"Three slices, 4 mm apart. {caption_of(middle)}"
            entries.append(
                Entry(
                    f"slice-group/{middle.id}",
                    "slice-group",
                    middle,
                    words,
                    targets=[p.pixels for p in group if p],
                )
            )
    return entries


def _mark_balanced(entries: list[Entry]) -> None:
    """Mark a subset of the questions: for each, no answer is more frequent than the next frequent one.

    Yes and no are then equally frequent, and a question that has a single answer in this section drops out.
    """
    by_question: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        if entry.question and entry.answer is not None:
            by_question[entry.question][entry.answer].append(entry)
    for answers in by_question.values():
        counts = Counter({answer: len(found) for answer, found in answers.items()}).most_common(2)
        limit = counts[1][1] if len(counts) > 1 else 0
        for found in answers.values():
            for entry in sorted(found, key=lambda entry: zlib.crc32(entry.id.encode()))[:limit]:
                entry.balanced = True
