# SPDX-License-Identifier: Apache-2.0
"""Facts -> what can be asked of them, type by type, and what is true; nothing here is guessed.

A question is only made where a fact answers it: no plane without a place in mm, no side without knowing which
side of the image is the patient's, no count of what was not annotated.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from monai_unimedvl.data.facts import Box, boxes_of, words_of
from monai_unimedvl.data.phrases import listed, templates
from monai_unimedvl.data.record import Record
from monai_unimedvl.transforms.regions import FULL

SIDE_WORDS = {"left": "the patient's left", "right": "the patient's right", "both": "both sides"}
FEW = 3
APART = 0.1  # of the image's side: middles nearer than this lie at no side of each other


@dataclass(frozen=True)
class Asked:
    """What a template needs: its type, the true answer, the other gaps, and wrong answers to choose from.

    Args:
        kind: a type of questions.yaml.
        about: what tells it from others of its type, such as the label.
        choices: answers that are wrong; empty where there is nothing to choose from.
    """

    kind: str
    answer: str
    about: str = ""
    gaps: dict[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


def asked(record: Record, chance: random.Random, folder: str = "") -> Iterator[Asked]:
    """Everything that can be asked about a record, type by type."""
    for kind in KINDS.values():
        yield from kind(record, chance, folder)


def named(record: Record, folder: str = "") -> tuple[str, str]:
    """("MRI", "T2-weighted MRI"): the modality, and the picture in words; "" where nobody knows."""
    words = templates("words", folder)["modality"].get(record.modality, [])
    contrast = next(iter(words_of(record.facts, "contrast")), "")
    if not words:
        return "", contrast
    return words[0], contrast or words[1]


def plane_of(record: Record) -> str:
    """The plane of a record's only image."""
    plane = record.input_img[0].place.get("plane") if len(record.input_img) == 1 else None
    return plane if isinstance(plane, str) else ""


def place_words(box: Box, width: int, height: int, folder: str = "") -> str:
    """ "upper left part": where the middle of a box lies on the image, in thirds."""
    x, y = box.centre
    rows: list[list[str]] = templates("words", folder)["places"]
    return rows[min(int(3 * y / height), 2)][min(int(3 * x / width), 2)]


def relation(box: Box, other: Box, width: int, height: int) -> str:
    """ "above and to the left of": how a box lies to another one; "" where they overlap too much to say."""
    (x, y), (u, v) = box.centre, other.centre
    across, down = (x - u) / width, (y - v) / height
    said = []
    if abs(down) >= APART:
        said.append("below" if down > 0 else "above")
    if abs(across) >= APART:
        said.append("to the right of" if across > 0 else "to the left of")
    return listed(said) if said else ""


def box_words(box: Box, width: int, height: int) -> str:
    """A box as prompts have it, in thousandths of the image."""
    left, right = (round(min(max(x / width, 0), 1) * FULL) for x in (box.left, box.right))
    top, bottom = (round(min(max(y / height, 0), 1) * FULL) for y in (box.top, box.bottom))
    return f"<box>({left},{top}),({right},{bottom})</box>"


def largest(boxes: Sequence[Box]) -> list[Box]:
    """The largest box of each label, the largest first."""
    found: dict[str, Box] = {}
    for box in boxes:
        if box.label not in found or box.area > found[box.label].area:
            found[box.label] = box
    return sorted(found.values(), key=lambda box: (-box.area, box.label))


def few(boxes: Sequence[Box]) -> list[Box]:
    """The boxes of labels that have few of them: of a hundred nuclei the largest one's place says nothing."""
    counts = Counter(box.label for box in boxes)
    return [box for box in boxes if counts[box.label] <= FEW]


def measured(value: float, unit: str) -> str:
    """ "12.5 mm"; a whole number without its point."""
    number = f"{value:.1f}".rstrip("0").rstrip(".")
    return f"{number} {unit}".strip() if unit != "%" else f"{number} %"


def _modality(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    answer, _ = named(record, folder)
    if answer and not str(record.facts.get("contrast", "")).lower().startswith(("pet", "spect")):
        others = templates("words", folder)["choices"]["modality"]
        yield Asked("modality", answer, choices=tuple(each for each in others if each != answer))


def _contrast(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    for answer in words_of(record.facts, "contrast")[:1]:
        yield Asked("contrast", answer)


def _plane(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    if answer := plane_of(record):
        yield Asked("plane", answer, choices=_others("plane", answer, folder))


def _view(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    for answer in words_of(record.facts, "view")[:1]:
        yield Asked("view", answer, choices=_others("view", answer, folder))


def _organ(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    for answer in words_of(record.facts, "organ")[:1]:
        yield Asked("organ", answer, choices=_others("organ", answer, folder))


def _presence(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    """As many that are there as are not, so that "yes" alone is no strategy."""
    there, not_there = words_of(record.facts, "labels"), words_of(record.facts, "absent")
    for label in chance.sample(there, min(len(there), max(1, len(not_there)))):
        yield Asked("presence", "Yes", label, {"label": label, "can": "can", "does": "shows"}, ("No",))
    for label in chance.sample(not_there, min(len(not_there), max(1, len(there)))):
        gaps = {"label": label, "can": "cannot", "does": "does not show"}
        yield Asked("presence", "No", label, gaps, ("Yes",))


def _side(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    side, labels = record.facts.get("side"), words_of(record.facts, "labels")
    if isinstance(side, str) and side in SIDE_WORDS and len(labels) == 1:
        gaps = {"label": labels[0], "side_words": SIDE_WORDS[side]}
        yield Asked("side", side, labels[0], gaps, _others("side", side, folder))


def _measured(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    """Counts and sizes."""
    for each in record.facts.get("measurements") or []:
        name, of, unit = (str(each.get(key, "")) for key in ("name", "of", "unit"))
        value = each.get("value")
        if not isinstance(value, int | float):
            continue
        if name == "count" and of:
            number = round(value)
            gaps = {"label": of, "are": "is" if number == 1 else "are", "s": "" if number == 1 else "s"}
            step = max(1, number // 4)
            wrong = {max(0, number - 2 * step), max(0, number - step), number + step, number + 2 * step}
            listed_ = chance.sample(sorted(wrong - {number}), 3) if number > 1 else [number + 1, number + 2]
            yield Asked("count", str(number), of, gaps, tuple(map(str, listed_)))
        elif name and unit and unit != "%":
            subject = of or "the finding"
            gaps = {"label": subject, "name": name}
            near = [measured(value * factor, unit) for factor in (0.5, 1.5, 2.0)]
            choices = tuple(one for one in near if one != measured(value, unit))
            yield Asked("size", measured(value, unit), f"{name} {of}", gaps, choices)


def _regions(record: Record, chance: random.Random, folder: str) -> Iterator[Asked]:
    """Where a label lies, what a box shows, and how two labels lie to each other."""
    if len(record.input_img) != 1:
        return
    width, height = record.input_img[0].width, record.input_img[0].height
    boxes = largest(few(boxes_of(record.facts)))
    every = [name for row in templates("words", folder)["places"] for name in row]
    names = [box.label for box in boxes] + words_of(record.facts, "absent")
    for box in boxes:
        place = place_words(box, width, height, folder)
        wrong = tuple(chance.sample([each for each in every if each != place], 3))
        yield Asked("location", place, box.label, {"label": box.label}, wrong)
        others = tuple(name for name in dict.fromkeys(names) if name != box.label)
        yield Asked("region", box.label, box.label, {"box": box_words(box, width, height)}, others[:3])
        yield Asked("grounding", box_words(box, width, height), box.label, {"label": box.label})
    for box, other in zip(boxes, boxes[1:], strict=False):
        if how := relation(box, other, width, height):
            gaps = {"label": box.label, "other": other.label}
            yield Asked("relation", how, f"{box.label} {other.label}", gaps)


def _others(name: str, answer: str, folder: str) -> tuple[str, ...]:
    listed_ = templates("words", folder)["choices"][name]
    return tuple(each for each in listed_ if each.lower() != answer.lower())


Maker = Callable[[Record, random.Random, str], Iterator[Asked]]
KINDS: dict[str, Maker] = {
    "modality": _modality, "contrast": _contrast, "plane": _plane, "view": _view, "organ": _organ,
    "presence": _presence, "side": _side, "count and size": _measured, "regions": _regions,
}  # fmt: skip
