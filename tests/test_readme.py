# SPDX-License-Identifier: Apache-2.0
"""The Python of the README runs as printed, top to bottom, beside a scan and the bundles."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np
import pytest


@pytest.fixture
def desk(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder such as a reader sits in: scan.nii.gz (a bright ball, 2 mm) and the checkout's bundles/."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (64, 80, 24)), indexing="ij")
    ball = np.clip(1 - np.sqrt(sum(x**2 for x in axes)), 0, 1).astype(np.float32) * 1000
    nibabel.save(nibabel.Nifti1Image(ball, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "scan.nii.gz")
    (tmp_path / "bundles").symlink_to(root / "bundles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs_as_printed(root: Path, desk: Path) -> None:
    blocks = re.findall(r"```python\n(.+?)```", (root / "README.md").read_text("utf8"), re.S)
    assert blocks, "the README shows no Python"
    namespace = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
