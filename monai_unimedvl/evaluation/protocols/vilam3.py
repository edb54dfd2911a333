# SPDX-License-Identifier: Apache-2.0
"""`vila-m3`: exact match of lower-case texts, over the items that MONAI's VILA-M3 takes of each benchmark.

VQA-RAD: its data preparation keeps closed test items (and adds their rephrasings, which the Hub's table does
not have); SLAKE: English; PathVQA: the items whose truth is yes or no. Others are taken whole.
"""

from __future__ import annotations

from collections.abc import Collection

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols.base import Fault, Protocol
from monai_unimedvl.evaluation.protocols.strict import closed_or_open

SOURCE = (
    "Project-MONAI/VLM-Radiology-Agent-Framework fc8c5a7 m3/eval/scripts/metric_{radvqa,slakevqa,pathvqa}.py"
)
FAULTS = (
    Fault(
        "spaces",
        "in PathVQA spaces around the answer are not removed, as they are in VQA-RAD and SLAKE: ' yes' is "
        "wrong.",
        "metric_pathvqa.py, `item['text'].lower()` without `strip`",
    ),
)  # fmt: skip


SAYS = {
    "select": "no multiple choice; of PathVQA yes/no, of SLAKE English, of VQA-RAD closed items",
    "split": "by answer_type, else yes or no is closed",
    "read": "in lower case, without spaces around it",
    "closed": "1 if the texts are the same, else 0",
    "open": "1 if the texts are the same, else 0",
    "choice": "multiple choice has no rule",
}


def vila_m3(faithful: Collection[str] = ()) -> Protocol:
    """The protocol `vila-m3`.

    Args:
        faithful: names of `FAULTS` to have.
    """
    having = frozenset(faithful)

    def read(text: str, row: Prediction, kind: str) -> str:
        return text.lower() if row.benchmark == "pathvqa" and "spaces" in having else text.strip().lower()

    def read_truth(text: str, row: Prediction, kind: str) -> str:
        return text.strip().lower()

    return Protocol(
        "vila-m3", "1",
        "Exact match in lower case; of PathVQA yes/no only, of SLAKE English only, of VQA-RAD closed only.",
        SOURCE, select=_select, split=closed_or_open, read=read, read_truth=read_truth, says=SAYS,
        closed=_same, open=_same,
        measures={"closed": "exact match", "open": "exact match"}, faults=FAULTS, faithful=having,
    )  # fmt: skip


def _same(said: str, truth: str, row: Prediction) -> float:
    return float(said == truth)


def _select(row: Prediction) -> str:
    if row.answer_type in ("choice", "report") or row.options:
        return f"a {row.answer_type or 'choice'}, which it does not know"
    if row.benchmark == "pathvqa" and row.truth.strip().lower() not in ("yes", "no"):
        return "no yes/no item, and of PathVQA it takes those only"
    if row.benchmark == "slake" and row.language != "en":
        return "not English, and of SLAKE it takes English only"
    if row.benchmark == "vqa-rad" and closed_or_open(row) != "closed":
        return "no closed item, and of VQA-RAD its data preparation takes those only"
    return "" if row.truth.strip() else "its truth is an image"
