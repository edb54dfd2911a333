# SPDX-License-Identifier: Apache-2.0
"""Packages that only some jobs need: asked for where they are used, and missed in one sentence."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class MissingPackage(ValueError):
    """A package is not installed: no fault of the file that was read, so the run stops."""


def needed(module: str, job: str, extra: str) -> ModuleType:
    """A module of a package that an extra brings.

    Args:
        module: its dotted name.
        job: what needs it, as the message begins: "DICOM SEG".
        extra: of setup.py.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingPackage(
            f"{job} needs {name}, which is not installed: pip install 'monai-unimedvl[{extra}]'."
        ) from error
