# SPDX-License-Identifier: Apache-2.0
"""Parts of a benchmark, and the failures that the paper tells."""

from __future__ import annotations

import pytest

from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.slices import FAILURES, failures_of, slice_rows, warnings


@pytest.mark.parametrize(
    "question, named",
    [
        ("How many nodules are there?", ("counting",)),
        ("What grade is this glioma?", ("severity",)),
        ("Is the image quality sufficient?", ("image quality",)),
        ("Are there motion artifacts?", ("image quality",)),
        ("Which surgical step is shown?", ("surgical action",)),
        ("Is there an arrow in the image?", ("overlays",)),
        ("图中有多少个结节?", ("counting",)),
        ("Is the heart enlarged?", ()),
        ("Which account is this?", ()),  # not every count counts
    ],
)
def test_questions_are_filed_under_the_known_failures(question, named):
    assert failures_of(Prediction("a", question=question)) == named


def test_a_question_type_counts_too():
    assert failures_of(Prediction("a", question="Nuclei?", question_type="nuclei_count")) == ("counting",)


def rows(n=60):
    return [
        Prediction(
            f"{k}", truth="x", question="How many?" if k % 2 else "Where?",
            modality="ct" if k < 30 else "mri",
            scores={"exact match": float(k % 2 == 0)}, groups={"plane": "axial" if k % 3 else "coronal"},
            image=f"{k // 2}",
        )
        for k in range(n)
    ]  # fmt: skip


def test_every_value_of_every_dimension_is_a_row():
    found = {row.group: row for row in slice_rows(rows(), groups=["plane"])}
    assert set(found) >= {"all", "modality: ct", "modality: mri", "plane: axial", "known failure: counting"}
    assert found["modality: ct"].n == 30 and found["known failure: counting"].value == 0.0
    with pytest.raises(ValueError, match="no column 'organ', expected some of modality"):
        slice_rows(rows(), ["organ"])


def test_what_the_mean_hides_and_what_was_not_asked_are_warned_of():
    told = warnings(slice_rows(rows()))
    assert any("known failure: counting: exact match 0.000" in line and "30 items" in line for line in told)
    assert "severity, image quality, surgical action, overlays" in told[-1] and "counting" not in told[-1]
    assert set(FAILURES) == {"counting", "severity", "image quality", "surgical action", "overlays"}
    assert not any("0.000" in line for line in warnings(slice_rows(rows(20))))  # ten items are too few
