# SPDX-License-Identifier: Apache-2.0
"""The atlas corpus in the four kinds of the curriculum: words alone, drawing, reading, and both in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.mixture import Dropout, Stream
from monai_unimedvl.sequence import Turn
from monai_unimedvl.training.curriculum import KINDS, Curriculum, Lessons, Stage
from monai_unimedvl.training.meter import task_of
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.presets import QUESTIONS_A_DIALOGUE, WEIGHTS, atlas_streams
from monai_unimedvl.training.run import Material
from monai_unimedvl.training.sheets import Case

READING = ("vqa", "caption")
SHOWN = 6  # pictures of a run at least, where there are that many held out
IN_WORDS = ("plane", "contrast", "region")  # questions that a caption answers


def atlas_lessons(dataset: AtlasDataset, tasks: Sequence[str] | None = None) -> dict[str, list[Stream]]:
    """Kind -> its streams, one a task, with the weights of `presets.WEIGHTS`.

    Args:
        tasks: only these; "text" is the one of words alone. None takes all.
    """
    lessons: dict[str, list[Stream]] = {kind: [] for kind in KINDS}
    streams = [*atlas_streams(dataset), *(() if (words := text_stream(dataset)) is None else (words,))]
    for stream in streams:
        if tasks is None or stream.name in tasks:
            lessons[kind_of(stream.name)].append(stream)
    return lessons


def kind_of(task: str) -> str:
    """The kind of a task of the atlas."""
    if task in ("text", "text-to-image"):
        return task
    return "image-to-text" if task in READING else "interleaved"


def text_stream(dataset: AtlasDataset) -> Stream | None:
    """Reading without a picture: a caption, and questions that its words answer; None without captions."""
    captions = {e.picture.id: str(e.answer) for e in dataset.entries if e.task == "caption"}
    asked: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for entry in dataset.entries:
        if entry.task == "vqa" and entry.picture.id in captions and entry.question.startswith(IN_WORDS):
            asked[entry.picture.id].append((entry.words, str(entry.answer)))
    pictures = list(asked)
    if not pictures:
        return None

    def read(index: int, generator: torch.Generator) -> list[Turn]:
        questions = asked[pictures[index]]
        order = torch.randperm(len(questions), generator=generator)[:QUESTIONS_A_DIALOGUE].tolist()
        turns: list[Turn] = []
        for place in order:
            question, answer = questions[place]
            shown = question if turns else f"{captions[pictures[index]]} {question}"
            turns += [Turn("user", [shown]), Turn("assistant", [answer])]
        return turns

    return Stream("text", read, len(pictures), 1.0)


def modality_of(dataset: AtlasDataset) -> Callable[[str], str]:
    """Origin of a sample ("sr4/12/0") -> modality of its picture; "words" of what has none."""
    found: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for entry in dataset.entries:
        if entry.task != "vqa":
            found[entry.task].append(entry.picture.modality)
        elif entry.picture.id not in seen:
            seen.add(entry.picture.id)
            found["vqa"].append(entry.picture.modality)

    def modality(origin: str) -> str:
        stream, index, _ = origin.rsplit("/", 2)
        return found[stream][int(index)] if stream in found else "words"

    return modality


def atlas_material(
    root: str | Path | None = None,
    *,
    tasks: Sequence[str] | Mapping[str, float] | None = None,
    permissive_only: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Material:
    """The atlas corpus to train on, its held-out section "val" to validate on, a case of each drawing task.

    Args:
        root: the atlas cache; None is the default one.
        tasks: of `data.atlas.TASKS`, and "text": only these; a mapping also gives their weights.

    Raises:
        ValueError: an unknown task, or none of them is there.
    """
    known = (*(task for task in WEIGHTS if not task.endswith("-group")), "text")
    if unknown := [task for task in tasks or () if task not in known]:
        raise ValueError(f"tasks has {unknown[0]!r}, expected some of {', '.join(known)}: rename it.")
    options: dict[str, Any] = {"permissive_only": permissive_only, "seed": seed, "progress": progress}
    dataset, held_out = (AtlasDataset(root, section, **options) for section in ("train", "val"))
    chosen = None if tasks is None else list(tasks)
    lessons, validation = (_weighed(atlas_lessons(each, chosen), tasks) for each in (dataset, held_out))
    if not any(lessons.values()):
        raise ValueError(
            f"The atlas has no sample of {', '.join(tasks or known)}: run `unimedvl data fetch-atlas`."
        )
    places = {
        task: [i for i, entry in enumerate(held_out.entries) if entry.task == task]
        for task in WEIGHTS
        if task not in READING and (tasks is None or task in tasks)
    }
    places = {task: found for task, found in places.items() if found}
    each = 1 + (SHOWN - 1) // max(1, len(places))
    shown = [found[len(found) * (n + 1) // (each + 1)] for found in places.values() for n in range(each)]
    items = map(held_out.__getitem__, shown)
    cases = [Case(item["turns"][0].parts, item["truth"]) for item in items]
    names, held_out_names = (partial(_names, modality_of(x)) for x in (dataset, held_out))
    return Material(lessons, validation, names, held_out_names, cases)


def fine_tuning(lessons: Lessons, *, steps: int, lr: float, max_tokens: int = 6000) -> Curriculum:
    """One stage on the tasks that are there, at the weights of their streams."""
    weights = {kind: sum(stream.weight for stream in found) for kind, found in lessons.items()}
    stage = Stage(
        "fine-tune", steps=steps, lr=lr, max_tokens=max_tokens, ema=0.98, text_weight=0.5,
        dropout=Dropout(text=0.1, view=0.05, canvas=0.05),
        weights={kind: weight for kind, weight in weights.items() if weight},
    )  # fmt: skip
    return Curriculum((stage,), Rates(lr=lr, matrix_lr=2 * lr, warmup=min(20, steps // 10), decay=0.5))


def _names(modality: Callable[[str], str], origin: str) -> list[str]:
    return [*task_of(origin), modality(origin)]


def _weighed(
    lessons: dict[str, list[Stream]], tasks: Sequence[str] | Mapping[str, float] | None
) -> dict[str, list[Stream]]:
    """The lessons with the weights of `tasks`, where it has some."""
    if not isinstance(tasks, Mapping):
        return lessons
    return {
        kind: [replace(stream, weight=tasks[stream.name]) for stream in found]
        for kind, found in lessons.items()
    }
