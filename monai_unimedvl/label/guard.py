# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label 0.8.5 needs to run beside pydicom 3 and a torch without CUDA, done at run time.

- `pydicom_seg`, which converts DICOM SEG, cannot be imported with pydicom 3: its two users get our functions.
- `torchvision`, a CUDA build on PyPI, is asked for two functions that draw tiles of pathology, which no
  task of ours or of a bundle calls.
- Training runs in a process of its own, which needs the same, and should end with the server.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

from monai.utils import optional_import

from monai_unimedvl.label.task import PARENT

APP = "monailabel.interfaces.utils.app"  # what MONAI Label starts for a task in the background
TASK = "monai_unimedvl.label.task"  # what is started instead: the same, guarded
ABSENT: dict[str, tuple[str, ...]] = {
    "pydicom_seg": (),
    "torchvision": (),
    "torchvision.utils": ("make_grid", "save_image"),
}
NEEDERS = ("monailabel.datastore.utils.convert", "monailabel.transform.post")


def protect() -> None:
    """Make `monailabel` importable; call it before the first import of it. Twice does no harm.

    Raises:
        ValueError: MONAI Label is not installed.
    """
    if not optional_import("monailabel")[1]:
        raise ValueError(
            "MONAI Label is not installed, expected monailabel 0.8.5: run `make label-venv`, or follow"
            " docs/LABEL.md."
        )
    for name in ("monai.networks.nets", "transformers"):  # they look for torchvision: before it seems there
        importlib.import_module(name)
    with _standing_in():
        convert: Any = importlib.import_module(NEEDERS[0])
        importlib.import_module(NEEDERS[1])
    from monai_unimedvl.label import segmentation

    convert.nifti_to_dicom_seg = segmentation.reviewed  # bound by name in what is imported from here on
    convert.dicom_seg_to_itk_image = segmentation.to_nifti
    tasks: Any = importlib.import_module("monailabel.utils.async_tasks.utils")
    tasks.subprocess = SimpleNamespace(Popen=_popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    infer: Any = importlib.import_module("monailabel.endpoints.infer")
    infer.nifti_to_dicom_seg = segmentation.synthetic


@contextmanager
def _standing_in() -> Iterator[None]:
    """Modules of those names that hold nothing of use, for as long as somebody imports from them."""
    missing = [name for name in ABSENT if name not in sys.modules]
    for name in missing:
        module = ModuleType(name)
        for attribute in ABSENT[name]:
            setattr(module, attribute, _refuse)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _refuse(*_: Any, **__: Any) -> None:
    raise ValueError("torchvision is not part of this environment: tiles of pathology cannot be drawn.")


def _popen(command: list[str], **options: Any) -> subprocess.Popen:
    environment = {**(options.pop("env", None) or os.environ), PARENT: str(os.getpid())}
    words = [TASK if word == APP else word for word in command]
    return subprocess.Popen(words, env=environment, **options)
