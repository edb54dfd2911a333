# SPDX-License-Identifier: Apache-2.0
"""`align`: the paper's F_align, which keeps the better half of the pairs of image and words.

    score = 0.5 * S + M
    S   the nearest of K captions that a captioner writes of the image, to the words of the record
    M   how well the words fit the image

both in [0, 1] (cosines moved from [-1, 1]; the paper says only "scaled"). Captions serve the score alone:
what is kept is the record's own words. Published: MedGemma-27B writes K = 5, E5-large-v2 S, MedSigLIP M.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_unimedvl.data.backends import Scorer, Writer, open_scorer, open_writer
from monai_unimedvl.data.backends.replay import Remembered
from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.record import PLACEHOLDER, InvalidRecord, Record
from monai_unimedvl.data.step import Stop, option
from monai_unimedvl.data.whole import KEEP, Note, Verdict, Whole

WEIGHT = 0.5  # of S; arXiv 2510.15710 v3, appendix A.2
CAPTIONS = 5
PROMPT = "Describe this medical image in one or two factual sentences."


@dataclass(frozen=True, kw_only=True)
class Align(Whole):
    """Scores by models, and the cut at a stated quantile."""

    name: ClassVar[str] = "align"
    about: ClassVar[str] = "keep the records whose words fit their image best: 0.5 * S + M, by models"
    example: ClassVar[str] = (
        "corpus/kept.jsonl --out corpus/aligned.jsonl --captioner http://127.0.0.1:8000/v1#medgemma\n"
        "    --image-scorer folder:/models/medsiglip --text-scorer folder:/models/e5 --memory align.jsonl"
    )
    root: str = option("", "folder that the images' paths start from")
    captioner: str = option("", "model that writes captions; without one S counts as 0 for all")
    image_scorer: str = option(about="model that scores image and words")
    text_scorer: str = option("", "model that scores two texts (default: the image scorer's text side)")
    memory: str = option("", "file of answers, so that nothing is asked twice")
    captions: int = option(CAPTIONS, "that the captioner writes")
    quantile: float = option(0.5, "share of the scored records that is left out")
    per: tuple[str, ...] = option((), "fields that make groups with a cut of their own, as modality")
    prompt: str = option(PROMPT, "that the captioner is asked with")
    seed: int = option(0, "of the captions")
    device: str = option("cpu", "of local models")

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1 or self.captions < 1:
            raise ValueError(
                f"quantile is {self.quantile} and captions {self.captions}, expected a share below 1 and at "
                "least 1: change them."
            )
        if wrong := [name for name in self.per if name not in ("modality", "dataset", "sub_task_type")]:
            raise ValueError(f"per has {wrong[0]!r}, expected modality, dataset or sub_task_type: change it.")

    @functools.cached_property
    def models(self) -> tuple[Writer | None, Scorer, Scorer]:
        """Captioner, scorer of images, scorer of texts."""
        writer: Any = open_writer(self.captioner, device=self.device) if self.captioner else None
        images: Any = open_scorer(self.image_scorer, device=self.device)
        texts: Any = open_scorer(self.text_scorer, device=self.device) if self.text_scorer else images
        if self.memory:
            writer = None if writer is None else Remembered(self.memory, writer)
            same = texts is images
            images = Remembered(self.memory, images)
            texts = images if same else Remembered(self.memory, texts)
        return writer, images, texts

    def note(self, record: Record) -> Note:
        """{"s", "m", "group"}, or nothing where there is no pair of image and words to score.

        Raises:
            InvalidRecord: an image that cannot be read, or an answer that is none.
        Stop: a model that is not there.
        """
        images = record.input_img or record.output_img
        words = told(record)
        if not images or not words or record.kind == "interleaved":
            return {}
        image = pixels(images[0], self.root or None)
        try:
            captioner, by_image, by_text = self.models
            fits = by_image.image_text(image, [words])[0]
            near = 0.0
            if captioner is not None:
                written = captioner.write(self.prompt, image, count=self.captions, seed=self.seed)
                near = max(by_text.text_text(words, written))
        except InvalidRecord:
            raise
        except ValueError as error:  # a model that is not there is no record's fault
            raise Stop(str(error)) from error
        group = "/".join(str(getattr(record, name)) for name in self.per)
        return {"s": round(near, 4), "m": round(fits, 4), "group": group}

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """The records below the quantile of their group are left out; what has no pair is kept."""
        listed = list(notes)
        scores: dict[str, list[float]] = {}
        for note in listed:
            if note:
                scores.setdefault(note["group"], []).append(score(note))
        cuts = {name: float(np.quantile(found, self.quantile)) for name, found in scores.items()}
        for note in listed:
            if not note:
                yield KEEP
                continue
            whole, cut = score(note), cuts[note["group"]]
            if whole < cut:
                yield Verdict(
                    "misaligned",
                    f"score is {whole:.3f} (S {note['s']:.3f}, M {note['m']:.3f}), expected {cut:.3f}.",
                )
            else:
                known = {"score": round(whole, 4), "s": note["s"], "m": note["m"], "cut": round(cut, 4)}
                yield Verdict(facts={"alignment": known})


def score(note: Note) -> float:
    """0.5 * S + M"""
    return WEIGHT * float(note["s"]) + float(note["m"])


def told(record: Record) -> str:
    """The words that are to fit the image: the answers, or the prompt of an image to be drawn."""
    speaker = "human" if record.kind == "text-to-image" else "gpt"
    words = " ".join(m.value.replace(PLACEHOLDER, " ") for m in record.message if m.speaker == speaker)
    return " ".join(words.split())
