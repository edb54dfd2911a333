# SPDX-License-Identifier: Apache-2.0
"""What an item of the atlas is asked, in how many ways, and what a prediction says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from monai_unimedvl.evaluation.asking import Drawing
from monai_unimedvl.evaluation.baselines import Item

WORDS = {"vqa": 24, "caption": 160}  # new tokens at most


def plans(task: str, steps: Sequence[int], drawing: Drawing) -> list[Drawing | None]:
    """How a task's images are drawn, one way after the other; None for words."""
    if task in WORDS:
        return [None]
    return [drawing] if task == "text-to-image" else [Drawing(count, 1.0) for count in steps]


def digest(chosen: Mapping[tuple[str, str], Sequence[Item]]) -> str:
    """sha256 of the ids of all items, in their order."""
    lines = [f"{section} {task} {item['id']}" for (section, task), items in chosen.items() for item in items]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prompt(item: Item) -> list[Any]:
    """What the model is sent."""
    return list(item["turns"][0].parts)


def asked(item: Item) -> str:
    """The prompt in words; an image is `<image>`."""
    return " ".join("<image>" if isinstance(part, Tensor) else str(part) for part in prompt(item))


def record(item: Item, groups: Sequence[str]) -> dict[str, Any]:
    """What a prediction says of its item."""
    names = ("id", "task", "section", "source", "contrast", "plane", "modality", "subject")
    place = item["id"].split("/")[1:]  # vqa/SOURCE/PLANE/SLICE/QUESTION, or without the question
    picture = "/".join(place[:-1] if item["question"] else place)
    more = {"body": item.get("body", ""), "groups": list(groups), "picture": picture}  # not all know a body
    return {name: item[name] for name in names} | more
