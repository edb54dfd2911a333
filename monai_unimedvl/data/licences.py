# SPDX-License-Identifier: Apache-2.0
"""What a licence allows of a corpus: commercial use or not, and under which duties.

A licence is known by its SPDX identifier at the start of the text, or by several joined by AND and OR; what
else is said there stays on the card. What is not known here counts as unknown, which is no permission.
This is a reading aid, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

FREE = {
    "Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unlicense", "0BSD",
    "CC0-1.0", "PDDL-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ODC-By-1.0", "Public-Domain",
    *(f"CC-BY-{version}" for version in ("1.0", "2.0", "2.5", "3.0", "4.0")),
}  # fmt: skip
SHARED_ALIKE = {
    "GPL-2.0", "GPL-3.0", "AGPL-3.0", "LGPL-2.1", "LGPL-3.0", "MPL-2.0", "ODbL-1.0", "CDLA-Sharing-1.0",
    *(f"CC-BY-SA-{version}" for version in ("2.0", "2.5", "3.0", "4.0")),
}  # fmt: skip
UNCHANGED = {f"CC-BY-ND-{version}" for version in ("2.0", "2.5", "3.0", "4.0")}
RESEARCH = re.compile(
    r"(?<![a-z])nc(?![a-z])|non-?\s?commercial|research (?:use )?only|physionet|data use|\bdua\b|proprietary",
    re.IGNORECASE,
)
_AND = re.compile(r"\sand\s|&", re.IGNORECASE)
KINDS = {
    "free": "commercial use allowed; keep the notices",
    "share alike": "commercial use allowed; what is derived keeps the licence",
    "no derivatives": "may be shared unchanged only; whether a corpus is a derivative is disputed",
    "non-commercial": "no commercial use",
    "unknown": "nothing is allowed until somebody asks the owner",
}


def kind_of(licence: str) -> str:
    """One of `KINDS` for a licence such as "CC-BY-4.0", "BSD-3-Clause (images: free use)", "MIT AND GPL-2.0".

    Of licences joined by AND the strictest holds, of those joined by OR the mildest; all must be known.
    """
    if RESEARCH.search(licence):
        return "non-commercial"
    order = list(KINDS)
    plain = re.sub(r"\([^()]*\)", " ", licence)  # what is said in brackets is for people
    groups = (re.split(r"\sor\s", group, flags=re.IGNORECASE) for group in _AND.split(plain))
    return order[max(min(order.index(_kind(name)) for name in group) for group in groups)]


def _kind(name: str) -> str:
    """The kind of one SPDX identifier, at the start of the text."""
    found = re.match(r"[A-Za-z0-9.+-]*", name.strip())
    known = re.sub(r"(-only|-or-later|\+)$", "", found.group() if found else "").lower()
    for kind, names in (("free", FREE), ("share alike", SHARED_ALIKE), ("no derivatives", UNCHANGED)):
        if known in {each.lower() for each in names}:
            return kind
    return "unknown"


def refuse_for_commerce(licences: Iterable[str]) -> None:
    """Nothing, where all of them allow commercial use.

    Raises:
        ValueError: some do not, or are not known; by name.
    """
    bad = {name or "unknown": kind_of(name) for name in licences}
    bad = {name: kind for name, kind in bad.items() if kind not in ("free", "share alike")}
    if bad:
        listed = "; ".join(f"{name} ({kind})" for name, kind in sorted(bad.items()))
        raise ValueError(
            f"a commercial corpus was asked for, and these licences are in it: {listed}; leave their sources "
            "out, or state the licence that they have."
        )


def roll_up(licences: Mapping[str, int]) -> list[tuple[str, str, int, str]]:
    """Rows (licence, kind, records, what it asks) of licence -> records, the strictest kinds first."""
    order = list(KINDS)[::-1]
    rows = [(name, kind_of(name), count, KINDS[kind_of(name)]) for name, count in licences.items()]
    return sorted(rows, key=lambda row: (order.index(row[1]), row[0]))
