# SPDX-License-Identifier: Apache-2.0
"""What `make dist` makes: a wheel, through the source archive, with recipes, bundles and data inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

MOVED = {"transforms": "monai_unimedvl/transforms/recipes", "bundles": "monai_unimedvl/bundles"}
SHIPPED = (
    ".py", ".typed", ".yaml", ".json", ".jsonl", ".safetensors", ".md", ".txt", ".conf", ".png", ".gz",
    ".html", ".css", ".js", ".cpp", ".h",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout so that nothing is left in it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    for name in ["monai_unimedvl", *MOVED]:
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["setup.py", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(root / name, copy)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package_and_the_recipes_and_bundles(
    wheel: Path, root: Path
) -> None:
    wanted = set()
    for name in ["monai_unimedvl", *MOVED]:
        for path in (root / name).rglob("*"):
            if path.suffix in SHIPPED or path.name == "LICENSE":
                wanted.add(f"{MOVED.get(name, name)}/{path.relative_to(root / name).as_posix()}")
    held = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted, f"missing: {sorted(wanted - held)}; too many: {sorted(held - wanted)}"


def test_every_public_name_is_found_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path)
    code = "import monai_unimedvl as m; print(m.__file__); [getattr(m, name) for name in m.__all__]"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_a_bundle_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    ZipFile(wheel).extractall(tmp_path / "site")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    config = "unimedvl_vqa_report/configs/inference.json"
    for command in (
        ["monai_unimedvl", "bundle", "copy", "unimedvl_vqa_report", "unimedvl_vqa_report"],
        ["monai_unimedvl", "bundle", "verify", "unimedvl_vqa_report"],
        ["monai.bundle", "run", "answer", "--config_file", config],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    assert (tmp_path / "eval" / "icbm152_axial-answer.json").is_file()
