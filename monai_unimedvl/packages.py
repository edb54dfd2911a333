# SPDX-License-Identifier: Apache-2.0
"""Packages that only some jobs need: asked for where they are used, and missed in one sentence.

The same for modules of ours that are heavy: `at_first_use` imports them when somebody asks for a name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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


def at_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are imported when they are asked for.

    Args:
        package: its `__name__`.
        homes: public name -> the module below the package that has it.
    """
    here = vars(sys.modules[package])

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"{package} has no public name {name!r}; it has {', '.join(homes)}.")
        here[name] = getattr(import_module(f"{package}.{homes[name]}"), name)  # not asked for again
        return here[name]

    return get, lambda: sorted({*here, *homes})
