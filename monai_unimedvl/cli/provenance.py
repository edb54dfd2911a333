# SPDX-License-Identifier: Apache-2.0
"""`unimedvl provenance`: whether files are synthetic, and altered."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from monai_unimedvl.cli.command import Result


def provenance(options: Namespace) -> Result:
    """Which each file is: marked, altered, unmarked, or stripped of a mark that its pixels still bear.

    One of several that cannot be read is told as unknown, and the others are still looked at.
    """
    from monai_unimedvl.provenance import examine

    lines: list[str] = []
    said: list[dict[str, Any]] = []
    for name in options.files:
        try:
            verdict = examine(name)
        except ValueError as error:
            if len(options.files) == 1:
                raise
            lines.append(f"{name}: unknown: {error}")
            said.append({"file": name, "case": "unknown", "why": str(error)})
            continue
        lines.append(f"{name}: {verdict.case}: {verdict.why}")
        mark = verdict.mark or {}
        told = ("software", "created", "task", "prompt", "seed", "weights")
        lines += [f"  {key}: {mark[key]}" for key in told if key in mark]
        found = verdict.found
        seen = None if found is None else {"score": round(found.score, 1), "id": found.id}
        said.append({"file": name, "case": verdict.case, "why": verdict.why, "mark": mark, "invisible": seen})
    return lines, {"verdicts": said, "ok": all(one["case"] == "marked" for one in said)}
