# SPDX-License-Identifier: Apache-2.0
"""`textify`: facts -> captions, questions and answers in words, several forms of each, the same under a seed.

A record with images and facts gives a record for each thing that it can teach: questions by type, a caption
that says the whole, its findings, its regions and how they lie to each other, a report where a radiologist
wrote one, and the image drawn from its caption. The words stand in `templates/*.yaml`; a folder of one's own
takes their place file by file. The bare record goes on too, for the steps that make tasks of its image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from monai_unimedvl.data.facts import boxes_of, words_of
from monai_unimedvl.data.phrases import article, capital, chance, check_gaps, fill, listed, templates
from monai_unimedvl.data.questions import (
    SIDE_WORDS,
    Asked,
    asked,
    few,
    largest,
    measured,
    named,
    place_words,
    plane_of,
    relation,
)
from monai_unimedvl.data.record import PLACEHOLDER, Message, Record, Reject, stable_id
from monai_unimedvl.data.step import Each, Item, option

MAKES = ("questions", "caption", "report", "generation")
GAPS = {  # what a template of a file may speak of
    "questions": "answer label other name box side_words are s can does",
    "captions": "picture article labels absent side_words label place size relation other number",
    "requests": "caption findings",
}
REGIONS = 3  # that a caption speaks of


@dataclass(frozen=True, kw_only=True)
class Textify(Each):
    """Facts into words, by templates."""

    name: ClassVar[str] = "textify"
    about: ClassVar[str] = "facts into questions, captions, reports and prompts, by templates"
    example: ClassVar[str] = "corpus/records.jsonl --out corpus/words.jsonl --seed 7"
    seed: int = option(0, "of the choice among forms")
    make: tuple[str, ...] = option(MAKES, f"what to make, of {', '.join(MAKES)}")
    questions: int = option(8, "of a record at most that many")
    turns: int = option(1, "questions in one record")
    choices: float = option(0.25, "share of the questions that list answers to choose from")
    templates: str = option("", "folder with templates of one's own (default: those that ship)")
    keep: bool = option(True, "the record without words goes on too, for the steps after")

    def __post_init__(self) -> None:
        if unknown := [each for each in self.make if each not in MAKES]:
            raise ValueError(f"make has {unknown[0]!r}, expected some of {', '.join(MAKES)}: change it.")
        if self.questions < 0 or self.turns < 1 or not 0 <= self.choices <= 1:
            raise ValueError(
                f"questions is {self.questions}, turns {self.turns}, choices {self.choices}, expected 0 or "
                "more, 1 or more and a share: change them."
            )
        templates("words", self.templates)
        for name, gaps in GAPS.items():
            check_gaps(name, templates(name, self.templates), gaps.split())

    def each(self, record: Record) -> Iterable[Item]:
        """A record -> the records that its facts give, and itself."""
        made: list[Item] = []
        if record.input_img and not record.output_img and not record.message:
            if "questions" in self.make:
                made += self._questions(record)
            caption = self.caption(record)
            if caption and "caption" in self.make:
                made.append(
                    self._told(
                        record, "caption", [(self._request(record, "caption"), caption[0])], caption[1]
                    )
                )
            if caption and "generation" in self.make and len(record.input_img) == 1:
                made.append(self._drawn(record, *caption))
        if "report" in self.make and not record.message and not record.output_img:
            made += self._reports(record)
        if (self.keep and record.input_img) or record.message or record.output_img:
            made.append(record)  # a report without an image has said all it has
        return made or [
            Reject("no-facts", "no fact gives words, expected labels or captions.", record.id, self.name)
        ]

    def caption(self, record: Record) -> tuple[str, str] | None:
        """What the whole image shows, and of which template or source; None where nothing is known."""
        if given := words_of(record.facts, "captions"):
            return given[0], "given"
        forms, random = templates("captions", self.templates), chance(self.seed, record.id, "caption")
        said = []
        for kind, gaps in self._sentences(record):
            if kind not in forms:
                continue  # a library of one's own may leave sentences out
            template = random.choice(forms[kind])
            said.append(capital(fill(template, gaps)))
        return (" ".join(said), "structured") if said else None

    def _sentences(self, record: Record) -> Iterator[tuple[str, dict[str, str]]]:
        """(kind of sentence, its gaps) in the order of a caption: whole, findings, regions, relations."""
        facts, single = record.facts, len(record.input_img) == 1
        _, what = named(record, self.templates)
        organ = next(iter(words_of(facts, "organ")), "")
        if what:
            words = " ".join(
                filter(None, [plane_of(record) or next(iter(words_of(facts, "view")), ""), what])
            )
            picture = f"{words} of the {organ}" if organ and organ not in what else words
            yield "view", {"picture": picture, "article": article(picture)}
        there, not_there = words_of(facts, "labels"), words_of(facts, "absent")
        if there:
            yield "labels", {"labels": listed(there)}
        if not_there and not (
            len(there) == 1 and len(not_there) > 3
        ):  # classes that exclude each other go unsaid
            yield "absent", {"absent": listed(not_there, "or")}
        side = facts.get("side")
        if isinstance(side, str) and side in SIDE_WORDS and there:
            yield "side", {"side_words": SIDE_WORDS[side]}
        if not single:
            return
        width, height = record.input_img[0].width, record.input_img[0].height
        boxes = largest(few(boxes_of(facts)))[:REGIONS]
        sizes = {
            str(each.get("of")): f", {measured(each['value'], each['unit'])} across"
            for each in facts.get("measurements") or []
            if each.get("name") == "diameter" and each.get("unit") == "mm"
        }
        for box in boxes:
            place = place_words(box, width, height, self.templates)
            yield "region", {"label": box.label, "place": place, "size": sizes.get(box.label, "")}
        for box, other in zip(boxes, boxes[1:], strict=False):
            if how := relation(box, other, width, height):
                yield "relation", {"label": box.label, "relation": how, "other": other.label}
        for each in facts.get("measurements") or []:
            if each.get("name") == "count" and each.get("of") and float(each.get("value", 0)) > 1:
                yield "count", {"label": str(each["of"]), "number": str(round(float(each["value"])))}

    def _questions(self, record: Record) -> Iterator[Record]:
        """The questions, one of each type first, then more of each."""
        random = chance(self.seed, record.id, "questions")
        there = templates("questions", self.templates)
        found = [each for each in asked(record, random, self.templates) if each.kind in there]
        random.shuffle(found)
        first: dict[str, Asked] = {}
        for each in found:
            first.setdefault(each.kind, each)
        ordered = [*first.values(), *(each for each in found if each is not first[each.kind])][
            : self.questions
        ]
        pairs = [(each, *self._said(record, each)) for each in ordered]
        for start in range(0, len(pairs), self.turns):
            some = pairs[start : start + self.turns]
            kinds = list(dict.fromkeys(each.kind for each, *_ in some))
            turns = [(question, answer) for _, question, answer in some]
            key = "+".join(f"{each.kind}:{each.about}" for each, *_ in some)
            yield self._told(record, "vqa", turns, "+".join(kinds), key)

    def _said(self, record: Record, each: Asked) -> tuple[str, str]:
        """Question and answer in the forms that the seed gives."""
        forms = templates("questions", self.templates)[each.kind]
        random = chance(self.seed, record.id, each.kind, each.about)
        gaps = {**each.gaps, "answer": each.answer}
        question = fill(random.choice(forms["ask"]), gaps)
        wrong = list(each.choices)
        if wrong and random.random() < self.choices:
            options = random.sample(wrong, min(3, len(wrong))) + [each.answer]
            random.shuffle(options)
            letters = dict(zip("ABCD", options, strict=False))
            listing = "\n".join(f"{letter}. {capital(words)}" for letter, words in letters.items())
            right = next(letter for letter, words in letters.items() if words == each.answer)
            return f"{question}\n{listing}\nAnswer with the letter.", right
        short = random.choice(forms[random.choice(["short", "full"])])
        answer = capital(fill(short, gaps))
        return question, answer if answer.endswith((".", ">")) else f"{answer}."

    def _reports(self, record: Record) -> Iterator[Record]:
        """Findings, report and impression as the radiologist wrote them."""
        report = record.facts.get("report")
        if not isinstance(report, Mapping):
            return
        findings, impression = (str(report.get(key, "")).strip() for key in ("findings", "impression"))
        if record.input_img and findings and impression:
            answer = f"Findings: {findings}\nImpression: {impression}"
            yield self._told(record, "report", [(self._request(record, "report"), answer)], "report")
        elif record.input_img and (findings or impression):
            yield self._told(
                record, "report", [(self._request(record, "findings"), findings or impression)], "report"
            )
        if findings and impression:
            bare = replace(record, input_img=())
            asked_ = self._request(record, "impression", findings=findings)
            yield self._told(bare, "impression", [(asked_, impression)], "impression")

    def _drawn(self, record: Record, caption: str, origin: str) -> Record:
        """The image, drawn from its caption."""
        prompt = self._request(record, "generation", caption=caption)
        return self._new(
            record, "generation", origin, main_task_type="text-to-image", sub_task_type="text-to-image",
            input_img=(), output_img=record.input_img, message=(Message("human", prompt),),
        )  # fmt: skip

    def _told(
        self, record: Record, sub: str, turns: Sequence[tuple[str, str]], template: str, key: str = ""
    ) -> Record:
        """A dialogue about the images, which stand before its first words."""
        marks = f"{PLACEHOLDER} " * len(record.input_img)
        message = []
        for number, (question, answer) in enumerate(turns):
            message += [Message("human", question if number else marks + question), Message("gpt", answer)]
        main = "image-to-text" if record.input_img else "text"
        return self._new(
            record, key or sub, template, main_task_type=main, sub_task_type=sub, input_img=record.input_img,
            message=tuple(message),
        )  # fmt: skip

    def _new(self, record: Record, key: str, template: str, **values: Any) -> Record:
        told = {"by": self.name, "template": template, "seed": self.seed}
        provenance = {**record.provenance, "id": {"by": self.name, "from": record.id}, "message": told}
        if not values.get("input_img") and "input_img" in provenance:
            moved = provenance.pop("input_img")
            provenance |= {"output_img": moved} if values.get("output_img") else {}
        return replace(
            record, id=stable_id(record.id, self.name, key, self.seed), provenance=provenance, **values
        )

    def _request(self, record: Record, kind: str, **gaps: str) -> str:
        random = chance(self.seed, record.id, kind)
        return fill(random.choice(templates("requests", self.templates)[kind]), gaps)
