# SPDX-License-Identifier: Apache-2.0
"""`Record`: one curated sample, in UniMedVL's schema plus what a hospital must know about it.

The schema is published beside this file as `record.schema.json`. A record that breaks it is a `Reject` with a
reason code, never a log line: a step takes `Iterable[Record]` and gives `Iterable[Record | Reject]`, so that
what goes in is what is kept plus what is rejected.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from monai_unimedvl.atomic import new_file

PLACEHOLDER = "<image>"  # in a message: here stands the next image
SPLITS = ("", "train", "val", "test")  # "" is not split yet
KINDS = ("text", "text-to-image", "image-to-text", "interleaved")

# Codes of this file and of what reads records; other steps add codes of their own in the same form.
CODES = {
    "bad-json": "the line is no JSON object in UTF-8",
    "missing-field": "a required field is not there",
    "unknown-field": "a field that the schema does not have",
    "wrong-type": "a field holds another type than the schema says",
    "wrong-value": "a field holds a value that is not allowed",
    "placeholders": "the number of <image> marks is not the number of images",
    "nothing-to-learn": "neither an answer nor an image to draw",
    "bare-image": "an image without words, of which records with words were made: no loss",
    "image-missing": "an image is neither embedded nor where its path says",
    "image-damaged": "an image cannot be read",
    "no-segments": "a text or an image that the model cannot take",
    "too-long": "more tokens than the budget of a pack",
}

_ID = re.compile(r"[A-Za-z0-9._:+-]{1,128}")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_PSEUDONYM = re.compile(r"[a-z]+-[0-9a-f]{16}")
_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class InvalidRecord(ValueError):
    """What a `Record` cannot be; `code` and `reason` are those of the reject that it becomes.

    Args:
        reason: for files that travel: it names no file and repeats no value that may be a name.
        said: the sentence of the error, for who sits at the machine; by default the reason.
    """

    def __init__(self, code: str, reason: str, said: str = "") -> None:
        super().__init__(said or reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Reject:
    """A record, or what should have become one, that a step leaves out.

    Args:
        code: why, in kebab case; `CODES` lists those of this file.
        reason: one sentence with what came and what was expected; never a patient identifier.
        id: of the record, where it has one.
        step: that rejected it.
        place: where it stood, such as "line 12"; it names no file.
    """

    code: str
    reason: str
    id: str = ""
    step: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise ValueError(f"Reject got code {self.code!r}, expected words like 'too-long': rename it.")

    def to_json(self) -> dict[str, str]:
        """The fields that say something, in order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}


@dataclass(frozen=True)
class ImageFile:
    """An image of a record: as `recipe` gave it, in a file that any viewer opens.

    Args:
        path: relative to the corpus, with forward slashes; inside it.
        height, width: pixels.
        place: where the image was cut from: such as {"index": 40, "position_mm": -12.5, "plane": "axial"}.
        content: the file's bytes, where they are embedded; they are not part of the JSON form.
    """

    path: str
    height: int
    width: int
    place: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _text("an image's path", self.path)
        parts = PurePosixPath(self.path).parts
        if not parts or "\\" in self.path or ":" in parts[0] or self.path[0] == "/" or ".." in parts:
            raise InvalidRecord(
                "wrong-value",
                "an image has a path that leads out, expected one inside the corpus such as 'images/a.png'.",
                f"an image has path {self.path!r}, expected one inside the corpus such as 'images/a.png'.",
            )
        for name in ("height", "width"):
            _whole(f"an image's {name}", getattr(self, name))
        _mapping("an image's place", self.place)

    def to_json(self) -> dict[str, Any]:
        """{path, height, width} and, where known, place."""
        known: dict[str, Any] = {"path": self.path, "height": self.height, "width": self.width}
        return {**known, "place": dict(self.place)} if self.place else known


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, "human" or "gpt", and the words, with `<image>` where an image stands."""

    speaker: Literal["human", "gpt"]
    value: str

    def __post_init__(self) -> None:
        if self.speaker not in ("human", "gpt"):
            raise InvalidRecord(
                "wrong-value", f"a message is from {self.speaker!r}, expected 'human' or 'gpt'."
            )
        _text("a message's value", self.value, empty=True)

    def to_json(self) -> dict[str, str]:
        """{from, value}"""
        return {"from": self.speaker, "value": self.value}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample of a corpus.

    Args:
        id: stable over rebuilds; `stable_id` makes one.
        main_task_type, sub_task_type: such as "image-to-text" and "vqa".
        modality: such as "mri"; the name of a recipe where there is one.
        dataset: that it belongs to.
        input_img, output_img: images to read, and to draw, in the order of their `<image>` marks. Messages
            without marks have the images read first and those drawn last.
        message: the dialogue; empty until words are made.
        licence: SPDX identifier, or "unknown".
        source: where the dataset is from: a name or an address, never a path of this machine.
        patient, study: pseudonyms as `pseudonym` makes them, or "".
        split: one of `SPLITS`.
        facts: what is known beyond the pixels (labels, boxes, measurements, flags), as JSON.
        provenance: of each field that was derived: {"message": {"by": "template", "name": "presence-2"}}.

    Raises:
        InvalidRecord: a ValueError with the reason code of its `Reject`.
    """

    id: str
    main_task_type: str
    sub_task_type: str
    modality: str
    dataset: str
    licence: str
    source: str
    input_img: tuple[ImageFile, ...] = ()
    output_img: tuple[ImageFile, ...] = ()
    message: tuple[Message, ...] = ()
    patient: str = ""
    study: str = ""
    split: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in REQUIRED:
            _text(name, getattr(self, name))
        if not _ID.fullmatch(self.id):
            raise InvalidRecord(
                "wrong-value",
                "id has other signs, expected 1 to 128 letters, digits and ._:+- signs.",
                f"id is {self.id[:60]!r}, expected 1 to 128 letters, digits and ._:+- signs.",
            )
        for name in ("patient", "study"):
            value = getattr(self, name)
            _text(name, value, empty=True)
            if value and not _PSEUDONYM.fullmatch(value):  # the value itself may be an identifier: not shown
                raise InvalidRecord(
                    "wrong-value", f"{name} is no pseudonym such as 'p-0123456789abcdef': use pseudonym()."
                )
        if self.split not in SPLITS:
            raise InvalidRecord("wrong-value", f"split is {self.split!r}, expected one of {SPLITS}.")
        _mapping("facts", self.facts)
        _mapping("provenance", self.provenance)
        for name, origin in self.provenance.items():
            by = origin.get("by") if isinstance(origin, Mapping) else None
            if name not in ALL or not isinstance(by, str) or not by:
                raise InvalidRecord(
                    "wrong-value", f"provenance of {name!r} is no field of a record with a 'by' beside it."
                )
        for name, kind in _LISTS.items():
            found = tuple(getattr(self, name))
            if wrong := [v for v in found if not isinstance(v, kind)]:
                raise InvalidRecord(
                    "wrong-type", f"{name} holds a {type(wrong[0]).__name__}, expected {kind.__name__}."
                )
            object.__setattr__(self, name, found)
        self._check_marks()

    def _check_marks(self) -> None:
        """No `<image>` at all, or one for each image."""
        for speaker, images, name in (
            ("human", self.input_img, "input_img"), ("gpt", self.output_img, "output_img"),
        ):  # fmt: skip
            marks = sum(m.value.count(PLACEHOLDER) for m in self.message if m.speaker == speaker)
            if marks not in (0, len(images)):
                raise InvalidRecord(
                    "placeholders",
                    f"messages of {speaker!r} have {marks} {PLACEHOLDER} marks for {len(images)} images in "
                    f"{name}, expected one for each or none.",
                )

    @property
    def kind(self) -> str:
        """Which of the four streams of the curriculum it belongs to; see `KINDS`."""
        return KINDS[2 * bool(self.input_img) + bool(self.output_img)]

    def to_json(self) -> dict[str, Any]:
        """The JSON form; what is empty is left out, except the fields of UniMedVL's schema."""
        row: dict[str, Any] = {name: getattr(self, name) for name in REQUIRED}
        for name in _LISTS:
            row[name] = [value.to_json() for value in getattr(self, name)]
        optional = {name: getattr(self, name) for name in ("patient", "study", "split")}
        optional |= {
            "facts": dict(self.facts),
            "provenance": {k: dict(v) for k, v in self.provenance.items()},
        }
        return row | {name: value for name, value in optional.items() if value}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        """The record of a JSON object.

        Raises:
            InvalidRecord: with the reason code.
        """
        _check_keys("the record", row, REQUIRED, ALL)
        values = dict(row)
        for name, kind in _LISTS.items():
            values[name] = tuple(_part(name, kind, each) for each in _list(name, row.get(name, [])))
        return cls(**values)


REQUIRED = ("id", "main_task_type", "sub_task_type", "modality", "dataset", "licence", "source")
ALL = tuple(f.name for f in fields(Record))
_LISTS: dict[str, type] = {"input_img": ImageFile, "output_img": ImageFile, "message": Message}


def parse(row: Any, *, place: str = "", step: str = "read") -> Record | Reject:
    """The record of a JSON object, or why it is none."""
    if not isinstance(row, Mapping):
        return Reject("bad-json", f"a {type(row).__name__} came, expected an object.", "", step, place)
    try:
        return Record.from_json(row)
    except InvalidRecord as error:
        named = row.get("id")
        known = named if isinstance(named, str) and _ID.fullmatch(named) else ""
        return Reject(error.code, error.reason, known, step, place)


def pseudonym(kind: str, identifier: str, key: str | bytes) -> str:
    """A name for a patient or study that only the holder of the key can make again: "p-0123456789abcdef".

    Args:
        kind: letters before the hyphen, such as "p" and "s".
        key: secret of the site; HMAC-SHA256 with it, cut to 64 bits.

    Raises:
        ValueError: an empty identifier or key, which would give everybody the same name.
    """
    secret = key.encode() if isinstance(key, str) else key
    if not identifier or not secret or not re.fullmatch("[a-z]+", kind):
        raise ValueError("pseudonym got an empty identifier, key or kind, expected all three: set the key.")
    return f"{kind}-{hmac.new(secret, f'{kind}:{identifier}'.encode(), hashlib.sha256).hexdigest()[:16]}"


def stable_id(*parts: object) -> str:
    """24 hex digits of what makes a record itself: its dataset, source file, task, words ..."""
    written = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(written.encode("utf8", "surrogatepass")).hexdigest()[:24]


def read_jsonl(path: str | Path, defaults: Mapping[str, Any] | None = None) -> Iterator[Record | Reject]:
    """Each line as a record, or as a reject that says which line; blank lines are nothing.

    Args:
        defaults: values of fields that a line lacks, such as {"licence": "CC-BY-4.0"} for UniMedVL's own.
            A line without "id" then gets the `stable_id` of its content.

    Raises:
        ValueError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file, expected records as JSON lines: check the path.")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"line {number}"  # the file's name may be a patient's
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Reject("bad-json", f"the line is no JSON ({error}).", "", "read", place)
                continue
            if defaults is not None and isinstance(row, dict):
                row = {**defaults, **row}
                row.setdefault("id", stable_id(row))
            yield parse(row, place=place)


def write_jsonl(items: Iterable[Record | Reject], path: str | Path) -> int:
    """Write records or rejects as JSON lines, whole or not at all; returns how many."""
    count = 0
    with new_file(path) as part, part.open("w", encoding="utf8") as stream:
        for item in items:
            stream.write(json.dumps(item.to_json(), ensure_ascii=False, separators=(",", ":")) + "\n")
            count += 1
    return count


def without_content(record: Record) -> Record:
    """The record without embedded bytes, for logs and lists."""
    return replace(
        record,
        input_img=tuple(replace(image, content=None) for image in record.input_img),
        output_img=tuple(replace(image, content=None) for image in record.output_img),
    )


def _part(name: str, kind: type, row: Any) -> Any:
    """An ImageFile or Message of its JSON object."""
    _mapping(f"an entry of {name}", row)
    if kind is Message:
        _check_keys(f"an entry of {name}", row, ("from", "value"), ("from", "value"))
        return Message(row["from"], row["value"])
    required = ("path", "height", "width")
    _check_keys(f"an entry of {name}", row, required, (*required, "place"))
    return ImageFile(**row)


def _check_keys(what: str, row: Mapping[str, Any], required: Iterable[str], known: Iterable[str]) -> None:
    for key in required:
        if key not in row:
            raise InvalidRecord("missing-field", f"{what} has no {key!r}, expected one.")
    if unknown := [str(key) for key in row if key not in set(known)]:
        raise InvalidRecord(
            "unknown-field", f"{what} has {unknown[0][:60]!r}, expected only {', '.join(known)}."
        )


def _list(name: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidRecord("wrong-type", f"{name} is a {type(value).__name__}, expected a list.")
    return value


def _text(name: str, value: Any, empty: bool = False) -> None:
    if not isinstance(value, str):
        raise InvalidRecord("wrong-type", f"{name} is a {type(value).__name__}, expected text.")
    if not empty and not value.strip():
        raise InvalidRecord("wrong-value", f"{name} is empty, expected some text.")
    if _NO_TEXT.search(value):
        raise InvalidRecord("wrong-value", f"{name} holds a NUL or half a surrogate pair, expected text.")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRecord("wrong-type", f"{name} is a {type(value).__name__}, expected a whole number.")
    if value < 1:
        raise InvalidRecord("wrong-value", f"{name} is {value}, expected at least 1.")


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise InvalidRecord("wrong-type", f"{name} is a {type(value).__name__}, expected an object.")
    if not value:
        return
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecord("wrong-type", f"{name} holds what JSON cannot ({error}).") from error
