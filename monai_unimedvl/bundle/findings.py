# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a file, on which line of it, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What is wrong: in which file, on which line (0: as a whole), and what to do."""

    file: str
    line: int
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.problem}; {self.mend}."


class Lines:
    """The line on which a dotted key stands; 0 for what is not there."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __getitem__(self, key: str) -> int:
        at = 0
        for part in key.split("."):
            if part.isdigit():
                continue
            found = re.compile(rf'"{re.escape(part)}"\s*:').search(self.text, at)
            if found is None:
                break
            at = found.end()
        return self.text.count("\n", 0, at) + 1 if at else 0
