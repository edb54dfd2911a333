# SPDX-License-Identifier: Apache-2.0
"""Scores of parts of a benchmark: by modality, anatomy, question type, and by the model's known failures.

UniMedVL's paper (appendix A.8) tells counting, severity, image quality, surgical action and burnt-in words as
failures; they are looked for in every question, and a benchmark that asks none says so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.report import summarise
from monai_unimedvl.evaluation.tables import ALL, Row

DIMENSIONS = ("modality", "anatomy", "question_type", "answer_type", "language")
FAILURES = {  # what a question says that asks for it, in English and Chinese
    "counting": r"\bhow many\b|\bnumber of\b|\bcounts?\b|\bcounting\b|多少|几个|数量",
    "severity": r"\bsever(e|ity)\b|\bhow (bad|advanced)\b|\bgrad(e|ing)\b|\bstag(e|ing)\b|\bmild\b"
    r"|严重|分级|分期",
    "image quality": r"\b(image|picture|scan) quality\b|\bart[ie]facts?\b|\bblurr?(y|ed)?\b|\bnoisy\b"
    r"|质量|伪影",
    "surgical action": r"\bsurgical (action|step|phase)\b|\bwhat is the surgeon\b"
    r"|\binstruments? (do|is|are)\b|手术(动作|步骤)",
    "overlays": r"\b(text|letters?|words?|labels?|annotations?|arrows?|markers?|overlays?|watermark)\b.*"
    r"\b(image|picture|scan|shown|visible|corner)\b|\boverlay\b|标注|箭头|文字",
}  # fmt: skip
FEWEST = 20  # items, below which a slice is told and not judged


def failures_of(row: Prediction) -> tuple[str, ...]:
    """The known failures that a question belongs to, by its words and its type."""
    said = f"{row.question} {row.question_type}".replace("_", " ").casefold()
    return tuple(name for name, pattern in FAILURES.items() if re.search(pattern, said))


def slice_rows(
    rows: Iterable[Prediction], dimensions: Sequence[str] = DIMENSIONS, *, groups: Sequence[str] = (),
    seed: int = 0,
) -> list[Row]:  # fmt: skip
    """One row for each value of each dimension and for each known failure, after those of all items.

    Args:
        dimensions: columns of a prediction. groups: keys of its `groups` to slice by as well.

    Raises:
        ValueError: a dimension that predictions do not have.
    """
    plain = []
    for row in rows:
        if unknown := [name for name in dimensions if not hasattr(row, name)]:
            raise ValueError(
                f"Predictions have no column {unknown[0]!r}, expected some of {', '.join(DIMENSIONS)}: name"
                " one of these, or give it as a group."
            )
        named = [
            f"{name.replace('_', ' ')}: {getattr(row, name)}" for name in dimensions if getattr(row, name)
        ]
        named += [f"{name}: {row.groups[name]}" for name in groups if row.groups.get(name)]
        named += [f"known failure: {name}" for name in failures_of(row)]
        plain.append(
            {
                "task": row.task, "section": row.section, "setting": row.setting, "groups": named,
                "scores": row.scores, "baselines": row.baselines, "ceiling": row.ceiling,
                "picture": row.image,
            }
        )  # fmt: skip
    return summarise(plain, seed=seed)


def warnings(rows: Iterable[Row]) -> list[str]:
    """What a mean hides: slices wholly below the whole, and known failures that nothing asked about."""
    found: list[str] = []
    whole: dict[tuple[str, ...], Row] = {}
    asked: dict[str, int] = defaultdict(int)
    tasks = []
    for row in rows:
        key = row.task, row.section, row.setting, row.metric
        if row.group == ALL:
            whole[key] = row
            tasks.append(row.task)
            continue
        if row.group.startswith("known failure: "):
            asked[row.group.removeprefix("known failure: ")] += row.n
        every = whole.get(key)
        if every is None or row.group.startswith(ALL):
            continue
        if row.n >= FEWEST and row.high < every.low:
            found.append(
                f"{row.task}, {row.section}, {row.group}: {row.metric} {row.value:.3f} (up to "
                f"{row.high:.3f}, {row.n} items) is below the {every.value:.3f} of all."
            )
    if {"vqa", "choice"} & set(tasks):
        missing = [name for name in FAILURES if not asked[name]]
        if missing:
            found.append(
                f"Not measured: no question is about {', '.join(missing)}, which this model is known for."
            )
    return found
