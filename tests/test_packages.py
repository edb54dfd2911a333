# SPDX-License-Identifier: Apache-2.0
"""Packages that only some jobs need."""

from __future__ import annotations

import sys

import pytest

from monai_unimedvl.packages import needed


def test_what_is_there_comes_as_a_module() -> None:
    assert needed("xml.dom", "A test", "test").__name__ == "xml.dom"


def test_what_is_not_there_is_one_sentence_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)  # as if it were not installed
    said = r"^DICOM SEG needs highdicom, which is not installed: pip install 'monai-unimedvl\[dicom\]'\.$"
    with pytest.raises(ValueError, match=said):
        needed("highdicom.seg", "DICOM SEG", "dicom")
