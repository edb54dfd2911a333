# SPDX-License-Identifier: Apache-2.0
"""A corpus of one's own, as shards, in the form that a run learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from monai_unimedvl.data.corpus import Augment, Corpus
from monai_unimedvl.data.mixture import Stream
from monai_unimedvl.data.record import InvalidRecord
from monai_unimedvl.training.run import Material
from monai_unimedvl.training.sheets import Case


def corpus_material(
    *folders: str | Path,
    tasks: Sequence[str] | None = None,
    check: Literal["sha256", "sizes"] = "sha256",
    augment: Augment | None = None,
) -> Material:
    """The records of split "train" to learn from, those of "val" to validate on, a drawing of each task.

    Args:
        folders: of shards, as `write_shards` made them.
        tasks: only these `sub_task_type`s; None takes all.
        check: "sizes" does not read every byte at the start.

    Raises:
        ValueError: a folder that is not whole; a task that none of its records has.
    """
    corpus = Corpus(*folders, check=check, augment=augment)
    lessons, validation = corpus.lessons("train"), corpus.lessons("val")
    known = {names_of(f"{s.name}/0/0")[0] for streams in lessons.values() for s in streams}
    if unknown := [task for task in tasks or () if task not in known]:
        raise ValueError(
            f"tasks has {unknown[0]!r}, but the shards have {', '.join(sorted(known))}: choose among these."
        )
    for kinds in (lessons, validation) if tasks is not None else ():
        for kind, streams in kinds.items():
            kinds[kind] = [s for s in streams if names_of(f"{s.name}/0/0")[0] in (tasks or ())]
    return Material(lessons, validation, names_of, names_of, _cases(validation["interleaved"]))


def names_of(origin: str) -> list[str]:
    """Task and modality of a sample: "vqa:mri/some-id/0" -> ["vqa", "mri"]."""
    parts = origin.rsplit("/", 2)[0].split(":")
    return [parts[0], parts[-1]]


def _cases(streams: Sequence[Stream]) -> list[Case]:
    """What is drawn at each validation: the first held-out record of each stream that can be read."""
    cases = []
    for stream in streams:
        try:
            turns = stream.read(0, torch.Generator())
        except InvalidRecord:
            continue  # the validation packs have it as a reject
        drawn = [part for turn in turns[1:] for part in turn.parts if isinstance(part, Tensor)]  # type: ignore
        if drawn:
            cases.append(Case(turns[0].parts, drawn[0]))  # type: ignore[union-attr, index]
    return cases
