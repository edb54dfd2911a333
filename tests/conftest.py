# SPDX-License-Identifier: Apache-2.0
"""What every test may count on: no network, one torch thread, the same seeds and examples, golden numbers."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported anywhere

import numpy as np
import pytest
import torch

with suppress(ModuleNotFoundError):  # MONAI Label's environment goes without
    from hypothesis import settings

    settings.register_profile("same", derandomize=True, deadline=None)
    settings.load_profile("same")

if TYPE_CHECKING:
    from golden_support import Golden

    from monai_unimedvl.networks.unimedvl import UniMedVL

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """One thread (tiny tensors, and sums in the same order everywhere) and fixed seeds before each test."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden numbers: the one named by UNIMEDVL_GOLDEN, else tests/golden."""
    folder = Path(os.environ.get("UNIMEDVL_GOLDEN") or ROOT / "tests" / "golden")
    assert (folder / "cases.safetensors").is_file(), f"no golden numbers in {folder}: set UNIMEDVL_GOLDEN"
    return folder


@pytest.fixture(scope="session")
def gold(golden: Path) -> Golden:
    """The golden numbers, read, and the network they belong to."""
    from golden_support import Golden

    return Golden(golden)


@pytest.fixture
def tiny() -> UniMedVL:
    """A network of a few thousand random numbers in float64."""
    from tiny import tiny_network

    return tiny_network()
