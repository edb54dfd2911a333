# SPDX-License-Identifier: Apache-2.0
"""The template library: files of sentences with gaps, and the choice of one by seed and record."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from monai_unimedvl.data.record import stable_id

HERE = Path(__file__).parent / "templates"


@functools.cache
def templates(name: str, folder: str = "") -> dict[str, Any]:
    """A file of the library, or of a folder of one's own that holds one of the same name.

    Args:
        name: without ending, such as "questions".
        folder: "" is the library that ships.

    Raises:
        ValueError: no such file, or one that is no YAML mapping.
    """
    path = Path(folder) / f"{name}.yaml" if folder else HERE / f"{name}.yaml"
    if folder and not path.is_file():
        path = HERE / f"{name}.yaml"  # who changes the questions need not write the captions
    try:
        found = yaml.safe_load(path.read_text("utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        raise ValueError(
            f"{path.name} cannot be read as YAML{where}, expected templates: mend it."
        ) from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path.name} is no mapping of templates, expected names with sentences: mend it.")
    return found


def check_gaps(name: str, forms: Any, known: Iterable[str]) -> None:
    """Every sentence below has gaps that something is known for.

    Raises:
        ValueError: one has another gap, or is no text.
    """
    if isinstance(forms, Mapping):
        for below in forms.values():
            check_gaps(name, below, known)
        return
    for template in forms if isinstance(forms, list) else [forms]:
        if not isinstance(template, str):
            raise ValueError(f"{name}.yaml has {template!r}, expected a sentence: put it in quotes.")
        fill(template, dict.fromkeys(known, ""))


def chance(seed: int, *parts: object) -> random.Random:
    """A generator of its own for every seed and whatever it is for; the same on every machine."""
    return random.Random(int(stable_id(seed, *parts), 16))


def fill(template: str, values: Mapping[str, str]) -> str:
    """A sentence with its gaps filled; `{Label}` is `{label}` with a capital.

    Raises:
        ValueError: a gap that nothing is known for.
    """
    known = {**values, **{key.capitalize(): capital(value) for key, value in values.items()}}
    try:
        return template.format_map(known).strip()
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"template {template!r} has a gap {error}, expected one of {', '.join(sorted(values))}: mend it."
        ) from error


def capital(words: str) -> str:
    """The words with a capital letter in front."""
    return words[:1].upper() + words[1:]


def article(words: str) -> str:
    """ "a" or "an" before words: an MRI, an X-ray, a CT."""
    first = words.split(" ")[0].split("-")[0]
    spelled = first.isupper() and len(first) <= 4  # read letter by letter
    return "an" if first[:1].lower() in ("aefhilmnorsx" if spelled else "aeiou") else "a"


def listed(words: Sequence[str], last: str = "and") -> str:
    """ "a", "a and b", "a, b and c" """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
