# SPDX-License-Identifier: Apache-2.0
"""`caption`: caption-augmented generation, which gives images to be drawn words worth learning from.

    describe   the image alone -> what can be seen, on four levels, without a diagnosis
    fuse       caption + description -> one prompt; what the caption said of sides, organs, numbers and
               absence must survive, or the record keeps its own words
    plan       prompt -> <think> what is drawn and why </think> and a list, for a share of the records

Each text that a model wrote bears the model's name and the hash of its prompt. The prompts are the files
describe.txt, fuse.txt and plan.txt of the template library. After UniMedVL (arXiv 2510.15710), appendix A.3.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from monai_unimedvl.data.backends import Writer, open_writer
from monai_unimedvl.data.backends.replay import Remembered
from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.fusion import changes, concludes, turned
from monai_unimedvl.data.phrases import HERE, chance
from monai_unimedvl.data.questions import named
from monai_unimedvl.data.record import PLACEHOLDER, InvalidRecord, Message, Record, stable_id
from monai_unimedvl.data.step import Each, Item, Stop, option

PROMPTS = {
    "describe": ("modality",),
    "fuse": ("modality", "caption", "description"),
    "plan": ("modality", "prompt"),
}
BEGINNING = "Please generate a realistic {modality} image showing"
SHOWN = "Here is the generated {modality} image that displays:"
THINK = re.compile(r"\A<think>(?P<why>.+?)</think>\s*(?P<rest>.+)\Z", re.DOTALL)
WORDS = (10, 400)  # of a description


@dataclass(frozen=True, kw_only=True)
class Caption(Each):
    """Longer prompts, and plans before drawing, for images that are to be drawn from words."""

    name: ClassVar[str] = "caption"
    about: ClassVar[str] = "describe, fuse and plan: longer prompts for drawing, checked word by word"
    example: ClassVar[str] = (
        "corpus/words.jsonl --out corpus/captioned.jsonl --writer http://127.0.0.1:8000/v1#medgemma\n"
        "    --memory captions.jsonl --plans 0.5"
    )
    root: str = option("", "folder that the images' paths start from")
    writer: str = option(about="model that writes: folder:PATH, http(s)://HOST/v1#MODEL or replay:FILE")
    memory: str = option("", "file of answers, so that nothing is asked twice")
    plans: float = option(0.5, "share of the prompts that are given a plan")
    tries: int = option(3, "answers that may fail a check before the record keeps its own words")
    failed: str = option("keep", "a record whose answers all failed: keep (its own words) or reject")
    prompts: str = option("", "folder with describe.txt, fuse.txt, plan.txt of one's own")
    seed: int = option(0, "of the choice of plans, and of the answers")
    max_tokens: int = option(768, "of an answer")
    device: str = option("cpu", "of a local model")

    def __post_init__(self) -> None:
        if not 0 <= self.plans <= 1 or self.tries < 1 or self.failed not in ("keep", "reject"):
            raise ValueError(
                f"plans is {self.plans}, tries {self.tries}, failed {self.failed!r}, expected a share, 1 or "
                "more, and 'keep' or 'reject': change them."
            )
        for name in PROMPTS:
            prompt(name, self.prompts)

    @functools.cached_property
    def model(self) -> Writer:
        """Who writes."""
        try:
            model = open_writer(self.writer, device=self.device, max_tokens=self.max_tokens)
            return Remembered(self.memory, model) if self.memory else model
        except ValueError as error:
            raise Stop(str(error)) from error

    def each(self, record: Record) -> Iterable[Item]:
        """An image to be drawn from words -> the same with better words; any other record as it is."""
        caption = " ".join(
            m.value.replace(PLACEHOLDER, " ") for m in record.message if m.speaker == "human"
        ).strip()
        if record.kind != "text-to-image" or not caption or any(m.speaker == "gpt" for m in record.message):
            return [record]
        try:
            return [self._written(record, caption)]
        except InvalidRecord as error:
            if self.failed == "reject" or error.code in ("image-missing", "image-damaged", "not-recorded"):
                raise
            facts = {**record.facts, "caption_refused": error.code}
            return [replace(record, facts=facts)]

    def _written(self, record: Record, caption: str) -> Record:
        image = pixels(record.output_img[0], self.root or None)
        modality = " ".join(filter(None, [named(record)[0] or record.modality]))
        original = str(next(iter(record.facts.get("captions") or []), "")) or bare(caption)
        gaps = {"modality": modality, "caption": original}
        gaps["description"] = self._asked("describe", gaps, image, lambda words: described(words))
        gaps["prompt"] = self._asked("fuse", gaps, None, lambda words: fused(words, original, modality))
        message = [Message("human", gaps["prompt"])]
        used = ["describe", "fuse"]
        if chance(self.seed, record.id, "plan").random() < self.plans:
            plan = self._asked("plan", gaps, None, lambda words: planned(words, original, modality))
            message.append(Message("gpt", plan))
            used.append("plan")
        told = {
            "by": self.name, "model": self.model.name, "seed": self.seed, "from": record.id,
            "prompts": {name: prompt(name, self.prompts)[1] for name in used},
        }  # fmt: skip
        return replace(
            record,
            id=stable_id(record.id, self.name, [m.value for m in message]),
            message=tuple(message),
            sub_task_type="text-to-image-plan" if len(message) > 1 else record.sub_task_type,
            facts={**record.facts, "caption": {"original": original, "description": gaps["description"]}},
            provenance={**record.provenance, "message": told, "id": {"by": self.name, "from": record.id}},
        )

    def _asked(
        self,
        name: str,
        gaps: dict[str, str],
        image: Tensor | None,
        check: Callable[[str], tuple[str, str] | None],
    ) -> str:
        """The first answer that a check lets through.

        Raises:
            InvalidRecord: none of the tries did; with what was wrong with the last.
            Stop: the model is not there.
        """
        text = re.sub(r"\{(\w+)\}", lambda gap: gaps.get(gap[1], gap[0]), prompt(name, self.prompts)[0])
        wrong: tuple[str, str] | None = None
        for attempt in range(self.tries):
            try:
                words = self.model.write(text, image, seed=self.seed + attempt)[0].strip()
            except InvalidRecord:
                raise
            except ValueError as error:
                raise Stop(str(error)) from error
            wrong = check(words)
            if wrong is None:
                return words
            text = f"{text}\n\nAn earlier answer was refused: {wrong[1]} Keep to the rules above."
        assert wrong is not None
        raise InvalidRecord(*wrong)


def described(words: str) -> tuple[str, str] | None:
    """What is wrong with a description: code and reason, or None."""
    count = len(words.split())
    if not WORDS[0] <= count <= WORDS[1]:
        return "bad-description", f"the description has {count} words, expected {WORDS[0]} to {WORDS[1]}."
    if found := concludes(words):
        return "diagnosis", f"the description draws a conclusion ({', '.join(found)}), expected none."
    return None


def fused(words: str, original: str, modality: str) -> tuple[str, str] | None:
    """What is wrong with a fused prompt: code and reason, or None."""
    beginning = BEGINNING.format(modality=modality)
    if not words.lower().startswith(beginning.lower()):
        return "bad-prompt", f"the prompt does not begin with {beginning!r}, expected it."
    if found := changes(original, words):
        return "fusion-changed", f"the prompt changed the caption ({'; '.join(found[:4])}), expected it kept."
    return None


def planned(words: str, original: str, modality: str) -> tuple[str, str] | None:
    """What is wrong with a plan: code and reason, or None."""
    told = THINK.match(words)
    shown = SHOWN.format(modality=modality)
    if told is None or not told["why"].strip() or "<think>" in told["rest"] or "</think>" in told["rest"]:
        return "bad-plan", "the plan is not one <think> ... </think> with words behind it, expected that."
    lines = [line.strip() for line in told["rest"].strip().splitlines() if line.strip()]
    bullets = [line for line in lines[1:] if line.startswith(("- ", "* "))]
    if lines[0].lower() != shown.lower() or not bullets or len(bullets) < len(lines) - 1:
        return "bad-plan", f"the plan does not go on with {shown!r} and lines of '- ', expected that."
    if found := turned(original, words):
        return "plan-changed", f"the plan changed the caption ({'; '.join(found[:4])}), expected it kept."
    return None


def bare(caption: str) -> str:
    """A caption without the request that textify may have put before it."""
    return re.sub(
        r"\A(?:draw this image|generate a medical image|please draw the following)\s*[:.]\s*", "", caption,
        flags=re.IGNORECASE,
    )  # fmt: skip


@functools.cache
def prompt(name: str, folder: str = "") -> tuple[str, str]:
    """A prompt's text, without its comments, and 16 hex digits of its hash.

    Raises:
        ValueError: no such file, or one without a gap that it needs.
    """
    own = Path(folder) / f"{name}.txt" if folder else None
    path = own if own is not None and own.is_file() else HERE / f"{name}.txt"
    try:
        lines = path.read_text("utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read as UTF-8 text, expected a prompt: mend it.") from error
    text = "\n".join(line for line in lines if not line.startswith("#")).strip()
    for gap in PROMPTS[name]:
        if "{" + gap + "}" not in text:
            raise ValueError(f"{path.name} has no gap {{{gap}}}, expected it: write where it belongs.")
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]
