# SPDX-License-Identifier: Apache-2.0
"""The tutorials: of one form, with pictures, indexed, and the same again from a clean kernel."""

from __future__ import annotations

import base64
import io
import re
from copy import deepcopy
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
HEADINGS = ("# ", "## Setup environment", "## Setup imports", "## Setup data directory", "## Clean-up")
ALIKE_WORDS, ALIKE_PICTURES = 0.9, 0.95  # of another machine: numbers may differ in their last digits
LOGGED = re.compile(r" - (INFO|WARNING) - |^(input )?(>|---)")  # MONAI's loggers, with paths of the machine
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words(cell: Any) -> list[str]:
    """What a cell says, without numbers: their digits are the machine's."""
    said = [output.get("text", "") for output in cell.outputs if output.get("name") == "stdout"]
    said += [output.data.get("text/plain", "") for output in cell.outputs if "data" in output]
    lines = [line for line in "\n".join(said).splitlines() if not LOGGED.search(line)]
    return re.findall(r"[A-Za-z_]{2,}", " ".join(lines))


def pictures(cell: Any) -> list[np.ndarray]:
    """What a cell shows, (H, W) in [0, 1]."""
    found = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("L")) / 255 for one in found]


def test_there_are_eight_and_the_index_has_each() -> None:
    index = (FOLDER / "README.md").read_text("utf8")
    assert len(NOTEBOOKS) >= 8 and all(f"({path.name})" in index for path in NOTEBOOKS)


@each
def test_a_notebook_has_the_form_of_monai_tutorials_and_pictures(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    missing = [heading for heading in HEADINGS if f"\n{heading}" not in f"\n{text}"]
    assert not missing and "Apache License" in text
    assert any("print_config()" in cell.source for cell in code(notebook))
    shown = [picture for cell in code(notebook) for picture in pictures(cell)]
    assert shown and all(picture.std() > 0.005 for picture in shown), "no picture, or a blank one"


@each
def test_a_notebook_names_no_machine_and_kept_no_error(path: Path) -> None:
    for cell in code(nbformat.read(path, 4)):
        assert all(output.output_type != "error" for output in cell.outputs)
        assert not re.search(r"/(home|root|work|opt|tmp|Users)/", " ".join(map(str, cell.outputs)))


@pytest.mark.tutorials
@each
def test_a_clean_kernel_says_and_shows_what_is_kept(
    path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    # no fetched package is there, so what is shown is from the two that pip installed, none under the GPL
    monkeypatch.setenv("UNIMEDVL_CACHE", str(tmp_path_factory.mktemp("cache")))
    kept = nbformat.read(path, 4)
    fresh = deepcopy(kept)
    for cell in code(fresh):
        cell.outputs = []
    NotebookClient(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for before, after in zip(code(kept), code(fresh), strict=True):
        if "print_config()" in before.source:
            continue
        alike = SequenceMatcher(None, words(before), words(after), autojunk=False).ratio()
        assert alike >= ALIKE_WORDS, f"{before.source}\nsaid {words(before)}, now {words(after)}"
        assert len(pictures(before)) == len(pictures(after))
        for one, other in zip(pictures(before), pictures(after), strict=True):
            assert one.shape == other.shape
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] >= ALIKE_PICTURES, before.source
    assert list(tmp_path.iterdir()) == [], "a notebook cleans up what it wrote"
