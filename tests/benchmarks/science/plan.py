# SPDX-License-Identifier: Apache-2.0
"""Questions and arms as they stand in `configs/`: what is trained, from what, and which arms are compared.

An arm that answers two questions is defined in one of them and named in the other (`from: b`), and trained
once: its result is named by arm and seed alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_unimedvl.atomic import write

HERE = Path(__file__).resolve().parent
CONFIGS, RESULTS = HERE / "configs", HERE / "results"
LETTERS = tuple("abcdefg")
KEYS = {"title", "question", "seeds", "tasks", "arms", "pairs", "metrics", "references", "against", "guess"}


@dataclass(frozen=True)
class Arm:
    """One run of a question: its name, and its values over those that all share."""

    name: str
    letter: str  # of the question that defines it
    config: dict[str, Any]

    @property
    def label(self) -> str:
        """In words."""
        return str(self.config.get("label", self.name))

    @property
    def digest(self) -> str:
        """Of all that decides the result but the seed; words are no part of it."""
        return self._digest(("label",))

    @property
    def trained(self) -> str:
        """Of all that decides the weights but the seed: an arm that is scored anew is not trained anew."""
        return self._digest(("label", "scored", "scoring"))

    def _digest(self, left_out: tuple[str, ...]) -> str:
        kept = {key: value for key, value in self.config.items() if key not in left_out}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Question:
    """A question, its arms in their order, and the pairs (first, second) whose difference answers it."""

    letter: str
    title: str
    question: str
    seeds: int
    arms: dict[str, Arm]
    pairs: list[tuple[str, str]]
    metrics: list[tuple[str, str]]
    values: dict[str, Any]


def read(name: str, folder: Path = CONFIGS) -> dict[str, Any]:
    """The values of one configuration.

    Raises:
        ValueError: there is none of that name.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("?.yaml")))
        raise ValueError(f"There is no question {name!r}, expected some of {known}: name one of these.")
    values: dict[str, Any] = yaml.safe_load(path.read_text("utf8"))
    return values


def question(letter: str, folder: Path = CONFIGS) -> Question:
    """A question with its arms resolved.

    Raises:
        ValueError: no such question, an unknown key, or a pair of unknown arms.
    """
    values, base = read(letter, folder), read("base", folder)
    if unknown := sorted(set(values) - KEYS):
        known = ", ".join(sorted(KEYS))
        raise ValueError(f"{letter}.yaml has the key {unknown[0]!r}, expected some of {known}: rename it.")
    arms = {}
    for name, own in values["arms"].items():
        if "from" in own:
            arms[name] = question(own["from"], folder).arms[name]
            continue
        config = copy.deepcopy(base)
        for key, value in (own or {}).items():
            merged = isinstance(value, dict) and isinstance(config.get(key), dict)
            config[key] = config[key] | value if merged else value
        arms[name] = Arm(name, letter, config)
    pairs = [(first, second) for first, second in values.get("pairs", [])]
    if wrong := [name for pair in pairs for name in pair if name.split("/")[0] not in arms]:
        raise ValueError(f"{letter}.yaml compares {wrong[0]!r}, expected arms among {', '.join(arms)}.")
    metrics = [(task, metric) for task, metric in values.get("metrics", [])]
    return Question(
        letter, values["title"], values["question"], int(values.get("seeds", 1)), arms, pairs, metrics, values
    )


def result_path(arm: str, seed: int, folder: Path = RESULTS) -> Path:
    """Where the result of an arm lies."""
    return folder / f"{arm}-seed{seed}.json"


def result(arm: Arm, seed: int, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The committed result of an arm; None if it has not run, or ran with other values."""
    path = result_path(arm.name, seed, folder)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf8"))
    return found if found["digest"] == arm.digest else None


def save(values: dict[str, Any], path: Path) -> None:
    """Write a result whole or not at all: a line for each list, so that a difference can be read."""
    lines = json.dumps(values, ensure_ascii=False, indent=1)
    for inner in (r"\[\s+[^\[\]{}]*?\s+\]", r'\{\s+"step"[^{}]*?\s+\}'):
        lines = re.sub(inner, lambda found: re.sub(r"\s+", " ", found[0]), lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, (lines + "\n").encode())
