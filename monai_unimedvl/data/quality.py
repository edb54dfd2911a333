# SPDX-License-Identifier: Apache-2.0
"""`coarse`, `boilerplate` and `review-sample`: what can be said of a record's quality without a model.

The paper's F_coarse (preset "paper") keeps min(height, width) >= 128 and 10 to 1024 characters. The checks of
pixels and of repeated words are ours. Thresholds are options, and stand in the report of the run.
"""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_unimedvl.data.dialogue import shared_pixels
from monai_unimedvl.data.phrases import chance
from monai_unimedvl.data.record import PLACEHOLDER, ImageFile, InvalidRecord, Record, stable_id
from monai_unimedvl.data.step import Each, Item, option
from monai_unimedvl.data.whole import KEEP, Note, Verdict, Whole

PRESETS: dict[str, dict[str, float]] = {
    "paper": {"min_side": 128, "min_chars": 10, "max_chars": 1024},  # arXiv 2510.15710 v3, appendix A.2
    "atlas": {"min_side": 48, "min_chars": 2, "max_chars": 4096},  # 2 mm volumes of 91 x 109 x 91 voxels
}
CODES = {
    "side-too-small": "an image whose shorter side is below the threshold",
    "text-too-short": "fewer characters than the threshold",
    "text-too-many": "more characters than the threshold",
    "constant": "an image of one value",
    "blank": "an image of nearly one value",
    "saturated": "an image that is mostly at its brightest",
    "repeated-words": "a text that says the same thing again and again",
    "boilerplate": "a text that stands beside too many images",
    "misaligned": "words that do not fit the image, among the lower scores",
}


@dataclass(frozen=True, kw_only=True)
class Coarse(Each):
    """Sizes, lengths, and images or words that hold nothing."""

    name: ClassVar[str] = "coarse"
    about: ClassVar[str] = "leave out what is too small, too short, too long, blank, saturated or repeated"
    example: ClassVar[str] = "corpus/words.jsonl --out corpus/kept.jsonl --preset paper"
    root: str = option("", "folder that the images' paths start from")
    preset: str = option("paper", f"thresholds: {', '.join(PRESETS)}")
    min_side: int | None = option(None, "pixels of the shorter side (default: the preset's)")
    min_chars: int | None = option(None, "characters of all words together (default: the preset's)")
    max_chars: int | None = option(None, "characters of all words together (default: the preset's)")
    max_blank: float = option(0.995, "share of pixels that may have the commonest value; 1 asks nothing")
    max_saturated: float = option(0.9, "share of pixels that may be at the brightest; 1 asks nothing")
    max_repeats: float = option(0.5, "share of sentences that may have been said before; 1 asks nothing")

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}, expected one of {', '.join(PRESETS)}: choose one.")
        if self.limit("min_chars") > self.limit("max_chars"):
            raise ValueError(
                f"min_chars {self.limit('min_chars'):g} is above max_chars {self.limit('max_chars'):g}, "
                "expected the first to be smaller: change them."
            )

    def limit(self, name: str) -> float:
        """A threshold: the option, else the preset's."""
        given = getattr(self, name)
        return PRESETS[self.preset][name] if given is None else given

    def each(self, record: Record) -> Iterable[Item]:
        """The record as it is.

        Raises:
            InvalidRecord: why not.
        """
        for image in (*record.input_img, *record.output_img):
            if min(image.height, image.width) < self.limit("min_side"):
                raise InvalidRecord(
                    "side-too-small",
                    f"an image has {image.width} x {image.height} pixels, expected at least "
                    f"{self.limit('min_side'):g} a side.",
                )
        if record.message:
            self._words(record)
        shown = record.input_img or (record.output_img if record.kind == "text-to-image" else ())
        for image in shown:  # an image to be drawn may be blank: a mask of nothing
            if reason := self._pixels(image):
                raise InvalidRecord(*reason)
        return [record]

    def _words(self, record: Record) -> None:
        said = [message.value.replace(PLACEHOLDER, "").strip() for message in record.message]
        length = sum(map(len, said))
        if length < self.limit("min_chars"):
            raise InvalidRecord(
                "text-too-short",
                f"the words have {length} characters, expected at least {self.limit('min_chars'):g}.",
            )
        if length > self.limit("max_chars"):
            raise InvalidRecord(
                "text-too-many",
                f"the words have {length:,} characters, expected at most {self.limit('max_chars'):g}.",
            )
        share = max((repeated(words) for words in said), default=0.0)
        if share > self.max_repeats:
            raise InvalidRecord(
                "repeated-words",
                f"{share:.0%} of a text was said before in it, expected at most {self.max_repeats:.0%}.",
            )

    def _pixels(self, image: ImageFile) -> tuple[str, str] | None:
        """Code and reason where an image shows nothing."""
        if self.max_blank >= 1 and self.max_saturated >= 1:
            return None
        if image.content is not None:
            return self._judged(shared_pixels(image, self.root or None))
        return self._seen(image.path, image.height, image.width)

    @functools.cached_property
    def _seen(self) -> Any:
        """The verdict on a file, remembered: many records share one image."""

        @functools.lru_cache(maxsize=4096)
        def seen(path: str, height: int, width: int) -> tuple[str, str] | None:
            return self._judged(shared_pixels(ImageFile(path, height, width), self.root or None))

        return seen

    def _judged(self, values: Tensor) -> tuple[str, str] | None:
        """(3, H, W) in [0, 1] -> what is wrong with it"""
        if float(values.max() - values.min()) <= 2 / 255:
            return "constant", "an image has one value everywhere, expected a picture."
        grey = (values.mean(0) * 255).round().long().flatten()
        share = float(torch.bincount(grey, minlength=256).max()) / len(grey)
        if share > self.max_blank:
            reason = f"{share:.1%} of an image has one value, expected at most {self.max_blank:.1%}."
            return "blank", reason
        bright = float((values.amin(0) >= 254 / 255).float().mean())
        if bright > self.max_saturated:
            reason = (
                f"{bright:.0%} of an image is at its brightest, expected at most {self.max_saturated:.0%}."
            )
            return "saturated", reason
        return None


@dataclass(frozen=True, kw_only=True)
class Boilerplate(Whole):
    """Long texts that stand beside many different images describe none of them."""

    name: ClassVar[str] = "boilerplate"
    about: ClassVar[str] = "leave out long answers that are the same beside many images"
    example: ClassVar[str] = "corpus/words.jsonl --out corpus/kept.jsonl --most 20"
    most: int = option(20, "images that one text may stand beside; the first ones are kept")
    chars: int = option(80, "only texts of at least that many characters")

    def note(self, record: Record) -> Note:
        """Hash of the longest answer, and of the images."""
        said = [m.value for m in record.message if m.speaker == "gpt"]
        longest = " ".join(max(said, key=len, default="").lower().split())
        images = [image.path for image in (*record.input_img, *record.output_img)]
        return {
            "words": stable_id(longest)[:16] if len(longest) >= self.chars else "",
            "image": stable_id(images),
        }

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """All but the first ones of a text are left out."""
        seen: dict[str, set[str]] = defaultdict(set)
        for note in notes:
            images = seen[note["words"]] if note["words"] else set()
            if note["image"] not in images and len(images) >= self.most:
                yield Verdict(
                    "boilerplate",
                    f"an answer stands beside more than {self.most} images, expected one about its own.",
                )
                continue
            images.add(note["image"])
            yield KEEP


@dataclass(frozen=True, kw_only=True)
class ReviewSample(Whole):
    """A sample for expert readers: of each stratum its share, at least one where there is room."""

    name: ClassVar[str] = "review-sample"
    about: ClassVar[str] = "mark a stratified sample for expert review: facts.review"
    example: ClassVar[str] = "corpus/kept.jsonl --out corpus/marked.jsonl --count 200 --by modality"
    count: int = option(200, "records to mark")  # as many as the paper's five experts read
    by: tuple[str, ...] = option(("modality",), "fields that make a stratum")
    seed: int = option(0, "of the choice")

    def __post_init__(self) -> None:
        known = ("modality", "dataset", "main_task_type", "sub_task_type", "split", "licence", "kind")
        if wrong := [name for name in self.by if name not in known]:
            raise ValueError(f"by has {wrong[0]!r}, expected some of {', '.join(known)}: change it.")

    def note(self, record: Record) -> Note:
        """Its id and stratum."""
        return {"id": record.id, "stratum": "/".join(str(getattr(record, name)) for name in self.by)}

    def decide(self, notes: Iterable[Note]) -> Iterator[Verdict]:
        """All are kept; the chosen ones are marked."""
        listed = list(notes)
        places: dict[str, list[int]] = defaultdict(list)
        for place, note in enumerate(listed):
            places[note["stratum"]].append(place)
        shares = allotted({name: len(found) for name, found in places.items()}, self.count)
        chosen: set[int] = set()
        for name, found in places.items():
            ordered = sorted(found, key=lambda place: chance(self.seed, name, listed[place]["id"]).random())
            chosen |= set(ordered[: shares[name]])
        for place in range(len(listed)):
            yield Verdict(facts={"review": True}) if place in chosen else KEEP


def allotted(sizes: dict[str, int], count: int) -> dict[str, int]:
    """How many of `count` each stratum gets: by its size, none left empty while there is room.

    The largest remainders get what rounding leaves over.
    """
    count = min(count, sum(sizes.values()))
    least = 1 if count >= len(sizes) else 0
    free = count - least * len(sizes)
    spare = {name: size - least for name, size in sizes.items()}
    total = sum(spare.values())
    exact = {name: free * size / total if total else 0.0 for name, size in spare.items()}
    given = {name: int(value) for name, value in exact.items()}
    over = free - sum(given.values())
    for name in sorted(exact, key=lambda name: (given[name] - exact[name], name))[:over]:
        given[name] += 1
    return {name: given[name] + least for name in sizes}


def repeated(words: str) -> float:
    """Share of a text's sentences, or of its runs of four words, that were said before in it."""
    sentences = [s for s in re.split(r"[.!?\n]+\s*", words.lower()) if len(s) > 3]
    tokens = words.lower().split()
    runs = [" ".join(tokens[n : n + 4]) for n in range(len(tokens) - 3)]
    shares = [1 - len(Counter(some)) / len(some) for some in (sentences, runs) if len(some) >= 4]
    return max(shares, default=0.0)
