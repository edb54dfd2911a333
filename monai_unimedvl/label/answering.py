# SPDX-License-Identifier: Apache-2.0
"""Infer tasks in words: an answer, a report, and a question about a region that was clicked or boxed."""

from __future__ import annotations

import math
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS
from monai_unimedvl.inferers import Answer, TextInferer
from monai_unimedvl.label.knobs import Knob
from monai_unimedvl.label.pictures import (
    AUTO,
    PLANES,
    is_volume,
    pictures_of,
    reading_knobs,
    slice_at,
    slice_of,
)
from monai_unimedvl.label.served import Opened, Served
from monai_unimedvl.label.task_base import Asked, Result, Task
from monai_unimedvl.label.writing import write_words
from monai_unimedvl.transforms.choosing import place
from monai_unimedvl.transforms.regions import Region, numbers_of, region_from_mm, region_of
from monai_unimedvl.transforms.structured import Case, parse_report

QUESTION = "Which plane is this?"
SPEAKING = {
    "temperature": Knob(0.0, 0.0, 10.0),
    "max_new_tokens": Knob(200, 1, 4096),
    "seed": Knob(0, 0),
    "think": Knob(False),
}


def speak(model: Opened, prompt: list[str | Tensor], values: dict[str, Any]) -> Answer:
    """The model's answer to one prompt."""
    infer = TextInferer(
        model.tokenizer, max_new_tokens=values["max_new_tokens"], temperature=values["temperature"],
        seed=values["seed"], think=values["think"],
    )  # fmt: skip
    return infer([prompt], model.network)[0]


def confidence(answer: Answer) -> float | None:
    """The mean probability of a token, in (0, 1]; None of an answer without words."""
    return math.exp(sum(answer.logprobs) / len(answer.logprobs)) if answer.logprobs else None


class Words(Task):
    """Words about an image; a subclass says what is asked, and about which region.

    For a batch, or with `save_label`, the words are also a JSON file, so that the data store keeps them.
    """

    verb = "ask"

    def __init__(self, served: Served, description: str, more: dict[str, Knob], modality: str) -> None:
        known = {"history": Knob(""), "indication": Knob(""), "prior_report": Knob("")}
        knobs = {**more, **reading_knobs(), **SPEAKING, **known}
        super().__init__(served, description, knobs, modality=modality)

    def question(self, asked: Asked) -> str:
        """What is asked."""
        return str(asked.values["question"])

    def regions(self, asked: Asked, pictures: list[MetaTensor]) -> list[Region]:
        """Where to look."""
        return []

    def answer(self, asked: Asked) -> Result:
        """Words, with their log-probability, the slices that were read, and boxes led back to the source."""
        values, question = asked.values, self.question(asked)
        if not question.strip():
            raise ValueError("the question is empty, but some words are expected: ask something.")
        pictures, said = pictures_of(asked.path, asked.reading(), asked.model.network)
        case = Case(
            pictures, question, values["history"], values["indication"], (), (), values["prior_report"],
            self.regions(asked, pictures),
        )  # fmt: skip
        parts = case.prompt()
        prompt = [part.as_tensor() if isinstance(part, MetaTensor) else part for part in parts]
        answer = speak(asked.model, prompt, values)
        words = " ".join(part for part in prompt if isinstance(part, str))
        slices = [p.meta["source"]["index"] for p in pictures if p.meta["source"]["count"] > 1]
        facts = asked.facts(words, self.verb, slices=slices)
        report = parse_report(answer.text, pictures[:1])
        told = {
            "answer": answer.text,
            "prompt": words,
            "seed": values["seed"],
            "stop_reason": answer.stop_reason,
            "logprob": sum(answer.logprobs),
            "confidence": confidence(answer),
            "read": [place(picture.meta["source"]) for picture in pictures],
            "remark": said,
            "regions": list(report.regions),
            "report": {"findings": list(report.findings), "impression": report.impression},
            "manifest": facts.manifest(),
        }
        file = write_words(answer.text, facts) if asked.request.get("save_label") else None
        return file, told


class AnswerTask(Words):
    """An answer to a question."""

    def __init__(self, served: Served, modality: str = "", question: str = QUESTION) -> None:
        super().__init__(served, "Answer a question about the image", {"question": Knob(question)}, modality)


class ReportTask(Words):
    """A description of the image."""

    verb = "report"

    def __init__(self, served: Served, modality: str = "") -> None:
        prompt = {"prompt": Knob(INSTRUCTIONS["caption"])}
        super().__init__(served, "Describe the image, or write a report", prompt, modality)

    def question(self, asked: Asked) -> str:
        """The prompt."""
        return str(asked.values["prompt"])


class RegionTask(Words):
    """An answer to a question about a box or a point.

    A box is words ("10,20,60,80" in pixels of the slice, or six or three numbers and mm); a point is a voxel,
    in `foreground` as viewers send clicks: [[i, j, k], ...]. The slice that holds it is the one that is read.
    """

    def __init__(self, served: Served, modality: str = "") -> None:
        knobs = {"question": Knob("What is at this place?"), "box": Knob("")}
        super().__init__(served, "Answer a question about a region of the image", knobs, modality)

    def answer(self, asked: Asked) -> Result:
        """As `Words`, on the slice of the region."""
        values = asked.values
        plane = values["plane"] if values["plane"] in PLANES else PLANES[0]
        points = asked.request.get("foreground") or []
        if bool(points) == bool(values["box"]):
            raise ValueError(
                "the request names a region twice or not at all, expected either `box`, such as"
                ' "10,20,60,80", or `foreground`, such as [[i, j, k]]: give one of them.'
            )
        if points and not (isinstance(points, list) and all(isinstance(p, list | tuple) for p in points)):
            raise ValueError(f"foreground is {points!r}, expected points [[i, j, k], ...]: correct it.")
        if points and not is_volume(asked.path):
            raise ValueError("foreground came for a flat picture, expected a volume: give `box` in pixels.")
        asked.told["places"] = []
        if points:
            found = [slice_at(asked.path, point, plane) for point in points]
            if len({index for index, _ in found}) > 1:
                raise ValueError(
                    "the points lie in several slices, expected one: ask about one slice at a time."
                )
            values |= {"slice": str(found[0][0]), "plane": plane}
            asked.told["places"] = [mm for _, mm in found]
        elif values["slice"] == AUTO and is_volume(asked.path):
            numbers, millimetres, _ = numbers_of(values["box"])
            if millimetres:
                middle = [(a + b) / 2 for a, b in zip(numbers[:3], numbers[-3:], strict=True)]
                values |= {"slice": str(slice_of(asked.path, middle, plane)), "plane": plane}
            else:
                values["slice"] = "middle"
        return super().answer(asked)

    def regions(self, asked: Asked, pictures: list[MetaTensor]) -> list[Region]:
        """The box, or the points that were clicked."""
        if places := asked.told["places"]:
            return [region_from_mm(pictures[0], place) for place in places]
        return [region_of(text, pictures[0]) for text in str(asked.values["box"]).split(";") if text.strip()]
