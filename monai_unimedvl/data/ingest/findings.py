# SPDX-License-Identifier: Apache-2.0
"""What the label columns of a table say: which findings are there, and which are known not to be.

  one column of names   ChestX-ray14: `Edema|Mass`; several are parted by | or ;, or a list
  a column a finding    CheXpert, or 0 and 1: 1 is there, 0 is not, -1 or nothing is not known

`No Finding` and `normal` are no findings. Where they hold, the columns that are empty, or the commonest names
of the table, are absent; of devices it says nothing, as in CheXpert. A number names no finding, and neither
does 1 in a column called `label`: such a row is refused.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_unimedvl.data.record import InvalidRecord

YES = {"1", "1.0", "yes", "true", "present", "positive", "+"}
NO = {"0", "0.0", "no", "false", "absent", "negative", "-"}
BLANK = {"", "nan", "na", "n/a", "none", "null"}
UNSURE = {*BLANK, "-1", "-1.0", "uncertain", "unknown"}
NOTHING = {"no finding", "no findings", "no abnormality", "no abnormalities", "normal", "healthy"}
LABELS = "label labels class classes diagnosis finding_labels category"  # columns of usual names
NAMELESS = {*LABELS.split(), *"target targets y gt ground_truth truth finding result outcome".split()}
MOST_ABSENT = 20  # names of a table that a row without findings says are absent
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Findings:
    """The label columns of a table.

    Raises:
        ValueError: they are of `No Finding` alone.
    """

    rows: Sequence[Any]
    columns: Sequence[str]

    def __post_init__(self) -> None:
        if self.columns and all(map(nothing, self.columns)):
            raise ValueError(
                f"labels names only {self.columns[0]!r}, expected columns of findings too: name them as A|B."
            )

    @functools.cached_property
    def names(self) -> Counter[str]:
        """What stands in the only column, in all of the table, and how often."""
        found: Counter[str] = Counter()
        for number in range(len(self.rows)):
            try:
                found.update(_words(self.rows[number].get(self.columns[0])))
            except InvalidRecord:
                continue
        return found

    @functools.cached_property
    def listed(self) -> bool:
        """Whether the only column holds names or grades; an odd word makes none of a column of truths."""
        if len(self.columns) != 1:
            return False
        if any(NUMBER.fullmatch(word) and word not in YES | NO | UNSURE for word in self.names):
            return True
        truths = sum(count for word, count in self.names.items() if word.lower() in YES | NO)
        named = sum(count for word, count in self.names.items() if _is_name(word))
        return named > (0 if usual(self.columns[0]) in NAMELESS else truths)

    def of(self, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """What is there, and what is not.

        Raises:
            InvalidRecord: a value that is no truth or names nothing, or nothing found beside a finding.
        """
        there, absent, left = self._listed(row) if self.listed else self._truths(row)
        found = [name for name in there if not nothing(name)]
        if len(found) < len(there):
            if any("device" not in name.lower() for name in found):
                raise InvalidRecord("bad-label", "a row has a finding and says that none was found: mend it.")
            absent += [name for name in left if "device" not in name.lower()]
        return found, [name for name in absent if not nothing(name)]

    def _listed(self, row: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
        """Names that a row has; absent ones; those that are absent if nothing was found."""
        there = [word for word in _words(row.get(self.columns[0])) if word.lower() not in {*UNSURE, "-"}]
        for word in there:
            if NUMBER.fullmatch(word) or word.lower() in YES | NO:
                raise _nameless(self.columns[0])
        if not any(map(nothing, there)):
            return there, [], []
        known = {word: n for word, n in self.names.items() if not nothing(word) and _is_name(word)}
        return there, [], sorted(known, key=lambda word: (-known[word], word))[:MOST_ABSENT]

    def _truths(self, row: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
        """The same of a column for each finding."""
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        for column in self.columns:
            said = " ".join(_words(row.get(column))).lower()
            if said not in YES | NO | UNSURE:
                raise InvalidRecord(
                    "bad-label", f"column {column!r} holds no truth, expected 1, 0, -1 or nothing."
                )
            if said in YES | NO and usual(column) in NAMELESS:
                raise _nameless(column)
            for names, kind in zip(found, (YES, NO, BLANK), strict=True):
                if said in kind:
                    names.append(column.replace("_", " "))
        return found


def usual(column: str) -> str:
    """The name of a column in small letters with _ between words, so that "Finding Labels" is usual too."""
    return re.sub(r"[\s_-]+", "_", column.strip().lower())


def nothing(name: str) -> bool:
    """Whether a label says that there is none."""
    return usual(name).replace("_", " ") in NOTHING


def _words(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    said = ["" if one is None else str(one) for one in listed]
    return [part.strip() for one in said for part in re.split(r"[|;]", one) if part.strip()]


def _is_name(word: str) -> bool:
    return not NUMBER.fullmatch(word) and word.lower() not in YES | NO | UNSURE


def _nameless(column: str) -> InvalidRecord:
    return InvalidRecord(
        "bad-label",
        f"column {column!r} holds a number or truth that names no finding, expected names, or 1, 0, -1 or"
        " nothing in a column that is called by its finding: rename it, or write the names.",
    )
