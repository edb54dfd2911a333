# SPDX-License-Identifier: Apache-2.0
"""Answers in a file: what a model said once is said again, with or without the model.

One JSON object a line: the hash of the question, the name of the model, the answer. Lines are added whole, so
that a run that was killed goes on where it stopped, and several processes may add to one file.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_unimedvl.data.backends import Scorer, Writer, digest
from monai_unimedvl.data.record import InvalidRecord, stable_id

START = b'{"question": '  # of every line that was written here


class Remembered:
    """A writer or scorer whose answers are kept in a file; without a model it only knows those.

    Args:
        path: of the file; it is made when the first answer is kept.
        model: that is asked what the file does not know.

    Raises:
        ValueError: no file and no model, or a file with lines that are no answers.
    """

    def __init__(self, path: str | Path, model: Writer | Scorer | None = None) -> None:
        self.path, self.model = Path(path), model
        if model is None and not self.path.is_file():
            raise ValueError(f"{self.path} is no file, expected answers as JSON lines: check the path.")
        self.asked = 0  # that the file did not know

    @functools.cached_property
    def answers(self) -> dict[str, Any]:
        """Question -> answer."""
        found: dict[str, Any] = {}
        if not self.path.is_file():
            return found
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                found[row["question"]] = row["answer"]
                self._said.setdefault(row["question"], str(row.get("model", "")))
            except (ValueError, KeyError, TypeError) as error:
                if line.startswith(START) or START.startswith(line):  # cut while it was written
                    continue
                raise ValueError(
                    f"{self.path.name} line {number} is no answer, expected question and answer: remove it."
                ) from error
        return found

    @functools.cached_property
    def _said(self) -> dict[str, str]:
        return {}

    @property
    def name(self) -> str:
        """Of the model; of a file alone that of the model that answered."""
        if self.model is not None:
            return self.model.name
        _ = self.answers
        return next((name for name in self._said.values() if name), "replay")

    def write(self, prompt: str, image: Tensor | None = None, *, count: int = 1, seed: int = 0) -> list[str]:
        """See `Writer`."""
        question = self._question("write", prompt, digest(image), count, seed)
        if question not in self.answers:
            if not isinstance(self.model, Writer):
                raise self._unknown()
            self._keep(question, self.model.write(prompt, image, count=count, seed=seed))
        return [str(words) for words in self.answers[question]]

    def image_text(self, image: Tensor, texts: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        question = self._question("image-text", digest(image), list(texts))
        if question not in self.answers:
            if not isinstance(self.model, Scorer):
                raise self._unknown()
            self._keep(question, [round(score, 6) for score in self.model.image_text(image, texts)])
        return [float(score) for score in self.answers[question]]

    def text_text(self, text: str, others: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        question = self._question("text-text", text, list(others))
        if question not in self.answers:
            if not isinstance(self.model, Scorer):
                raise self._unknown()
            self._keep(question, [round(score, 6) for score in self.model.text_text(text, others)])
        return [float(score) for score in self.answers[question]]

    def _question(self, kind: str, *parts: Any) -> str:
        """Of a model its name is part of the question; a file alone answers whoever asked first."""
        name = self.model.name if self.model is not None else self.name
        return stable_id(kind, name, *parts)

    def _unknown(self) -> InvalidRecord:
        return InvalidRecord(
            "not-recorded",
            f"{self.path.name} holds no answer to this question, expected one: record it with the model.",
        )

    def _keep(self, question: str, answer: Any) -> None:
        self.asked += 1
        name = "" if self.model is None else self.model.name
        line = json.dumps({"question": question, "model": name, "answer": answer}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            whole = (
                size == 0 or os.pread(handle, 1, size - 1) == b"\n"
            )  # else a line was cut: leave it behind
            os.write(handle, (line if whole else "\n" + line).encode())  # one call, so lines never mix
        finally:
            os.close(handle)
        self.answers[question] = answer
