# SPDX-License-Identifier: Apache-2.0
"""The prediction file: one row for each item asked, from which every score is taken.

    write_predictions([Prediction("q1", truth="yes", answer="Yes.")], "predictions.parquet")
    rows = read_predictions("predictions.parquet").rows

Parquet is the form that is written; JSON lines and CSV with the same columns are read too, and a folder of
Parquet parts. A file says how many items it should hold (`about["items"]`): one that holds fewer is refused,
so that no denominator shrinks unseen.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from monai_unimedvl.atomic import new_file
from monai_unimedvl.data.shards import parquet
from monai_unimedvl.packages import needed

FORMAT = "unimedvl-predictions 1"
ANSWER_TYPES = ("", "closed", "open", "choice", "report")
REQUIRED = ("id", "answer")  # of tables made elsewhere; and of truth and truth_image one
ENDINGS = ".parquet, .jsonl or .csv"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One item of a benchmark and what was answered or drawn.

    Args:
        id: of the item, as the benchmark names it; unique within benchmark, section, task and setting.
        truth: the true answer, or the true report; "" where the truth is an image.
        answer: what the model said, untouched; "" if it said nothing, which counts as wrong.
        question: as the benchmark has it.
        prompt: as it was sent, with the suffix of a protocol; an image is `<image>`.
        references: further true answers.
        benchmark: such as "slake". section: such as "test". task: such as "vqa" or "t2-to-flair".
        setting: how it was made where there are several ways, such as "4 steps".
        answer_type: "closed", "open", "choice" or "report" as the benchmark says; "" if it does not.
        question_type, modality, anatomy: to slice by.
        language: "en" or "zh".
        options: of a multiple choice, in the order A, B, C ...
        image: name of the image asked about. patient: pseudonym. Intervals are clustered by these.
        groups: further things to slice by.
        drawn, truth_image: files of the image drawn and of the true one, relative to the prediction file.
        seed: of the item. weights: sha256 of the weights.
        protocol: name and version of the protocol whose suffix was sent.
        logprob: sum over the tokens of the answer; None if unknown. tokens: how many.
        stop_reason: why the answer ended.
        error: why there is no answer; such an item stays in the denominator.
        scores: metric -> score of this item; None where it is undefined, never NaN.
        baselines: metric -> name -> score of a trivial answer. ceiling: metric -> best that can be had.
    """

    id: str
    truth: str = ""
    answer: str = ""
    question: str = ""
    prompt: str = ""
    references: Sequence[str] = ()
    benchmark: str = ""
    section: str = "test"
    task: str = "vqa"
    setting: str = ""
    answer_type: str = ""
    question_type: str = ""
    language: str = "en"
    options: Sequence[str] = ()
    modality: str = ""
    anatomy: str = ""
    image: str = ""
    patient: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    drawn: str = ""
    truth_image: str = ""
    seed: int = 0
    weights: str = ""
    protocol: str = ""
    logprob: float | None = None
    tokens: int | None = None
    stop_reason: str = ""
    error: str = ""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    ceiling: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What no two rows of a file may share."""
        return self.benchmark, self.section, self.task, self.setting, self.id


@dataclass(frozen=True)
class Predictions:
    """The rows of a file and how they were made.

    Args:
        about: JSON-able; "items" is the number of rows that the run was to give.
        source: the file, for messages.
    """

    rows: list[Prediction]
    about: dict[str, Any] = field(default_factory=dict)
    source: str = "predictions"

    def __len__(self) -> int:
        return len(self.rows)


COLUMNS = tuple(one.name for one in fields(Prediction))
LISTS = ("references", "options")
MAPS = ("groups", "scores", "baselines", "ceiling")
NUMBERS = ("seed", "logprob", "tokens")
DEFAULTS: dict[str, Any] = {
    one.name: one.default for one in fields(Prediction) if isinstance(one.default, str | int | tuple)
} | {name: {} for name in MAPS} | {"logprob": None, "tokens": None}  # fmt: skip


def write_predictions(
    rows: Iterable[Prediction], path: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Write a Parquet file, whole or not at all; the same rows give the same bytes.

    Args:
        about: how it was made, JSON-able; "items" is set to the number of rows unless it is given.

    Raises:
        ValueError: a row that `check` refuses; `MissingPackage` where pyarrow is not installed.
    """
    path, listed = Path(path), list(rows)
    told = {"items": len(listed)} | dict(about or {})
    check(listed, source=path.name)
    arrow = needed("pyarrow", "A prediction file", "data")
    columns = {name: [_stored(name, getattr(row, name)) for row in listed] for name in COLUMNS}
    notes = {"format": FORMAT, "about": json.dumps(told, ensure_ascii=False, sort_keys=True)}
    table = arrow.table(columns, schema=_schema(arrow).with_metadata(notes))
    with new_file(path, durable=True) as part:
        parquet().write_table(table, part, compression="ZSTD")
    return path


def read_predictions(
    path: str | Path, *, columns: Mapping[str, str] | None = None, ignore: Sequence[str] = (),
    items: int | None = None, partial: bool = False,
) -> Predictions:  # fmt: skip
    """The rows of a prediction file, or of a folder of Parquet parts in the order of their names.

    Args:
        columns: name of a column in the file -> its name here, such as {"gt": "truth"}.
        ignore: columns of the file to leave out.
        items: number of rows that there must be, where the file does not say it.
        partial: take a file of a run that is not finished.

    Raises:
        ValueError: no such file, a column too few or unknown, or a row that `check` refuses.
    """
    path = Path(path)
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts or not all(part.is_file() for part in parts):
        raise ValueError(f"{path} is no prediction file, expected {ENDINGS}, or a folder of Parquet parts.")
    rows: list[Prediction] = []
    about: dict[str, Any] = {}
    places: list[tuple[str, int]] = []
    for part in parts:
        table, told = _table(part)
        about = {**told, **about}
        found = _rows(table, part.name, dict(columns or {}), ignore)
        places += [(part.name, number) for number in range(1, len(found) + 1)]
        rows += found
    check(rows, places=places)
    wanted = items if items is not None else None if partial else about.get("items")
    if wanted is not None and wanted != len(rows):
        mend = (
            "finish the run, or drop what is too much" if items is None else "check the path and the number"
        )
        raise ValueError(f"{path.name} holds {len(rows)} rows, expected {wanted}: {mend}.")
    return Predictions(rows, about, path.name)


def check(
    rows: Sequence[Prediction], *, source: str = "predictions",
    places: Sequence[tuple[str, int]] | None = None,
) -> None:  # fmt: skip
    """Refuse rows from which no honest score can be taken.

    Args:
        places: (file, number of the row in it) of each row; otherwise rows of `source` count from 1.

    Raises:
        ValueError: no rows; an empty or a second id; no truth; NaN or infinite scores; an unknown answer
            type. The file, the row and the mend are named.
    """
    if not rows:
        raise ValueError(f"{source} holds no rows, expected one for each item: run the benchmark first.")
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        if row.key in seen:
            other = _place(seen[row.key], source, places)
            _refuse(number, source, places, f"has id {row.id!r} as {other} has", "keep one of the two")
        seen[row.key] = number
        if not row.id:
            _refuse(number, source, places, "has no id", "name the item")
        if not row.truth.strip() and not row.truth_image:
            mend = "write the true answer into truth, or the file of the true image into truth_image"
            _refuse(number, source, places, f"(id {row.id}) has no ground truth", mend)
        if row.answer_type not in ANSWER_TYPES:
            mend = f"write one of {', '.join(ANSWER_TYPES[1:])}, or nothing"
            _refuse(number, source, places, f"(id {row.id}) has answer_type {row.answer_type!r}", mend)
        if row.logprob is not None and math.isnan(row.logprob):
            _refuse(number, source, places, f"(id {row.id}) has logprob NaN", "leave it empty if unknown")
        for name, values in _numbers(row):
            if lost := [value for value in values if value is not None and not math.isfinite(value)]:
                said = "NaN" if math.isnan(lost[0]) else f"{lost[0]}"
                mend = "an undefined score is empty (None), which a table counts and tells"
                _refuse(number, source, places, f"(id {row.id}) has {said} in {name}", mend)


def _numbers(row: Prediction) -> Iterable[tuple[str, Iterable[float | None]]]:
    if row.scores:
        yield "scores", row.scores.values()
    if row.ceiling:
        yield "ceiling", row.ceiling.values()
    for metric, values in row.baselines.items():
        yield f"baselines of {metric}", values.values()


def _place(number: int, source: str, places: Sequence[tuple[str, int]] | None) -> str:
    file, row = (source, number + 1) if places is None else places[number]
    return f"{file} row {row}"


def _refuse(
    number: int, source: str, places: Sequence[tuple[str, int]] | None, found: str, mend: str
) -> None:
    raise ValueError(f"{_place(number, source, places)} {found}: {mend}.")


def _schema(arrow: Any) -> Any:
    text, number = arrow.string(), arrow.float64()
    kinds = {
        "references": arrow.list_(text), "options": arrow.list_(text), "groups": arrow.map_(text, text),
        "scores": arrow.map_(text, number), "ceiling": arrow.map_(text, number),
        "baselines": arrow.map_(text, arrow.map_(text, number)),
        "seed": arrow.int64(), "tokens": arrow.int64(), "logprob": number,
    }  # fmt: skip
    return arrow.schema([(name, kinds.get(name, text)) for name in COLUMNS])


def _stored(name: str, value: Any) -> Any:
    """As Arrow wants it: maps as lists of pairs."""
    if name == "baselines":
        return [(metric, list(values.items())) for metric, values in value.items()]
    return list(value.items()) if name in MAPS else list(value) if name in LISTS else value


def _table(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Column -> values of a file, and what it says of itself."""
    header: Iterable[str] = ()  # a CSV has columns though it has no rows
    try:
        if path.suffix == ".parquet":
            held = parquet().read_table(path)
            told = json.loads((held.schema.metadata or {}).get(b"about", b"{}"))
            return {name: held.column(name).to_pylist() for name in held.column_names}, told
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix == ".jsonl":
                lines = [json.loads(line) for line in stream if line.strip()]
            elif path.suffix == ".csv":
                table = csv.DictReader(stream, strict=True)
                lines = [dict(line) for line in table]
                header = table.fieldnames or ()
            else:
                raise ValueError(f"its name ends in {path.suffix or 'nothing'}")
    except (OSError, ValueError, csv.Error) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{path.name} cannot be read ({said}), expected {ENDINGS}: write it again."
        ) from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or None in line:
            what = "more cells than the header" if isinstance(line, dict) else "no mapping"
            raise ValueError(f"{path.name} row {number} has {what}, expected one value a column: mend it.")
    names = dict.fromkeys([*header, *(name for line in lines for name in line)])
    lost = {name: DEFAULTS.get(name) for name in names}
    return {name: [line.get(name, lost[name]) for line in lines] for name in names}, {}


def _rows(
    table: Mapping[str, list[Any]], source: str, renamed: Mapping[str, str], ignore: Sequence[str]
) -> list[Prediction]:
    if lost := [name for name in (*renamed, *ignore) if name not in table]:
        raise ValueError(
            f"{source} has no column {lost[0]!r}, which was to be renamed or left out: it has "
            f"{', '.join(table) or 'none'}."
        )
    named = {renamed.get(name, name): values for name, values in table.items() if name not in ignore}
    for name in named:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1)
            mend = f"rename it to {near[0]!r}, or" if near else "rename it, or"
            raise ValueError(f"{source} has a column {name!r}, which no prediction has: {mend} leave it out.")
    missing = [name for name in REQUIRED if name not in named]
    if not {"truth", "truth_image"} & set(named):
        missing.append("truth")
    if missing:
        raise ValueError(
            f"{source} has no column {missing[0]!r}, expected {', '.join(REQUIRED)} and truth among "
            f"{', '.join(table) or 'none'}: add it, or say which of these it is."
        )
    columns = []
    for name, values in named.items():
        places = enumerate(values, 1)
        columns.append([_value(name, value, source, number) for number, value in places])
    return [Prediction(**dict(zip(named, values, strict=True))) for values in zip(*columns, strict=True)]


def _value(name: str, value: Any, source: str, number: int) -> Any:
    """One cell as `Prediction` holds it."""
    if name not in NUMBERS and name not in LISTS and name not in MAPS:
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)  # ids that are counted
        if value is None and name not in (*REQUIRED, "truth"):
            return DEFAULTS.get(name, "")
        found = "nothing" if value is None else "NaN" if value != value else repr(value)
        mend = "write '' if the model said nothing, which counts as wrong" if name == "answer" else "mend it"
        raise ValueError(f"{source} row {number} has {found} in {name}, expected text: {mend}.")
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        if value is None:
            return DEFAULTS[name]
        if name in LISTS:
            if not all(isinstance(one, str) for one in value):
                raise ValueError("not all are text")
            return tuple(value)
        if name == "baselines":
            return {metric: dict(values) for metric, values in dict(value).items()}
        if name in MAPS:
            return dict(value)
        return float(value) if name == "logprob" else int(value)
    except (ValueError, TypeError) as error:
        kind = "a list of texts" if name in LISTS else "a mapping" if name in MAPS else "a number"
        raise ValueError(
            f"{source} row {number} has {value!r} in {name}, expected {kind}, in CSV as JSON: mend it."
        ) from error
