# SPDX-License-Identifier: Apache-2.0
"""A list of requests: text (a path a line), CSV with a header, or JSONL.

Columns: `input` (paths; several in a CSV parted by ";", in JSONL an array), `prompt`, `seed`, `out`, what is
said of the reading (`modality`, `plane`, `slice`, `window`) and, for ask and report, what is known beside the
images (`history`, `indication`, `labs`, `prior_report`, `prior_image`, `box`). What a line leaves empty is as
on the command line. Paths count from the list's own folder, results from the folder --out.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from monai_unimedvl.cli.options import PLANES, seed

READ = ("modality", "plane", "slice", "window")
BESIDE = ("history", "indication", "labs", "prior_report", "prior_image", "box")  # of ask and report
PATHS = ("labs", "prior_report", "prior_image")
COLUMNS = ("input", "prompt", "seed", "out", *READ, *BESIDE)


@dataclass(frozen=True)
class Request:
    """One line of a list.

    Args:
        line: its number in the file, from 1.
        images: paths.
        out: name of the result in the folder of results.
        said: the other columns that are not empty.
    """

    line: int
    images: tuple[str, ...]
    out: str
    said: dict[str, Any]

    def options(self, common: Namespace, folder: Path) -> Namespace:
        """The options of this request alone: those of the command line, and what its line says."""
        own = {"images": list(self.images), "out": str(folder / self.out), "quiet": True, **self.said}
        return Namespace(**{**vars(common), **own})


def read_list(path: str, common: Namespace, ending: str) -> list[Request]:
    """The requests of a list, in its order.

    Args:
        path: "-" is stdin.
        common: options of the command line.
        ending: of results that name no `out`, as ".png".

    Raises:
        ValueError: no such file, an unknown column, a value that does not fit, or two results of one name.
    """
    if path == "-":
        name, folder, text = "stdin", Path(), sys.stdin.read()
    else:
        name, folder = Path(path).name, Path(path).parent
        text = _text(Path(path))
    requests = [
        _request(name, line, row, folder, common, ending) for line, row in _rows(name, text, common.verb)
    ]
    if not requests:
        raise ValueError(f"{name} names nothing, but at least one line is expected: fill it.")
    places: dict[str, int] = {}
    for request in requests:
        taken = places.setdefault(request.out.lower(), request.line)
        if taken != request.line:
            raise ValueError(
                f"{name}, lines {taken} and {request.line}: both write {request.out}: give each an 'out'."
            )
    return requests


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text: save it as a text, CSV or JSONL file.") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"--input-list {path} cannot be read ({reason}): check the path.") from error


def _rows(name: str, text: str, verb: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, column -> value) of each line that is not empty."""
    kind = PurePath(name).suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _table(name, text, "\t" if kind == ".tsv" else ",")
        return
    if kind in (".jsonl", ".ndjson") or (name == "stdin" and text.lstrip().startswith("{")):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, _object(name, number, line)
        return
    if kind == ".json":
        raise ValueError(f"{name} is JSON, but one object on each line is expected: write a .jsonl.")
    column = "prompt" if verb == "draw" else "input"
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {column: [line.strip()] if column == "input" else line.strip()}


def _table(name: str, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
        for column in header:
            if column not in COLUMNS or header.count(column) > 1:
                raise ValueError(
                    f"{name} has the column {column!r}, expected each of {', '.join(COLUMNS)} at most once:"
                    " name the columns in the first line."
                )
        for cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{name}, line {rows.line_num}: {len(cells)} cells under {len(header)} columns: put"
                    " texts with commas in quotes."
                )
            row: dict[str, Any] = {key: cell.strip() for key, cell in zip(header, cells, strict=True)}
            if "input" in row:
                row["input"] = [part.strip() for part in row["input"].split(";") if part.strip()]
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f"{name}, line {rows.line_num}: no CSV ({error}): mend the quotes.") from error


def _object(name: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {number}: no JSON ({error.msg}): one object a line.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name}, line {number}: a JSON {type(row).__name__}, but an object is expected.")
    for key in row:
        if key not in COLUMNS:
            raise ValueError(
                f"{name}, line {number}: {key!r} is not known, expected {', '.join(COLUMNS)}: rename it."
            )
    if isinstance(row.get("input"), str):
        row["input"] = [row["input"]]
    return row


def _request(
    name: str, line: int, row: dict[str, Any], folder: Path, common: Namespace, ending: str
) -> Request:
    where = f"{name}, line {line}"
    row = {key: value for key, value in row.items() if value not in (None, "", [])}
    images = row.pop("input", [])
    out = row.pop("out", None) or f"{common.verb}-{line:05d}{ending}"
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
        raise ValueError(f"{where}: input is {images!r}, but a path or an array of paths is expected.")
    if common.verb == "draw" and images:
        raise ValueError(f"{where}: an input came, but draw takes words alone: use edit for images.")
    if common.verb != "draw" and not images:
        raise ValueError(f"{where}: no input, but a file or folder is expected: fill the column 'input'.")
    if common.verb in ("edit", "segment") and len(images) > 1:
        raise ValueError(f"{where}: {len(images)} inputs came, but {common.verb} takes one: part the line.")
    if "seed" in row:
        row["seed"] = _seed(where, row["seed"])
    for key in BESIDE if common.verb not in ("ask", "report") else ():
        if key in row:
            raise ValueError(f"{where}: {key} came, which {common.verb} does not take: leave it out.")
    if isinstance(row.get("box"), list):
        row["box"] = ";".join(map(str, row["box"]))
    for key in set(row) - {"seed"}:
        if not isinstance(row[key], str | int):
            raise ValueError(f"{where}: {key} is {row[key]!r}, but a text is expected: put it in quotes.")
        row[key] = str(row[key])
    for key in PATHS:
        if key in row:
            row[key] = str(folder / row[key])
    if "box" in row:
        row["box"] = [text.strip() for text in row["box"].split(";")]
    if row.get("plane", PLANES[0]) not in PLANES:
        raise ValueError(f"{where}: plane is {row['plane']!r}, expected {', '.join(PLANES)}: choose one.")
    if "prompt" in row and common.verb == "segment":
        raise ValueError(f"{where}: a prompt came, but segment takes its words from --task: leave it out.")
    if not isinstance(out, str) or PurePath(out).is_absolute() or ".." in PurePath(out).parts:
        raise ValueError(f"{where}: out is {out!r}, but a name within the folder --out is expected.")
    return Request(line, tuple(str(folder / path) for path in images), out, row)


def _seed(where: str, value: Any) -> int:
    try:
        return seed(str(value))
    except ArgumentTypeError as error:
        raise ValueError(f"{where}: seed is {value!r}, but a whole number is expected.") from error
