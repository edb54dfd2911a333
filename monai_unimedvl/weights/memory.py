# SPDX-License-Identifier: Apache-2.0
"""How much memory a checkpoint takes once it is loaded, by job and by bits, from its headers alone."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from monai_unimedvl.networks.absent import PARTS
from monai_unimedvl.weights.loading import ANSWERING, left_out
from monai_unimedvl.weights.source import Source

JOBS = {"answering": ANSWERING, "drawing": PARTS}
BITS = {"int8": 8.1, "int4": 4.6, "nf4": 4.4}  # a weight, with its share of scales
NARROW = r"decoder\.(head|layers\.\d+\.(attention\.(q|k|v|out)|mlp)\..*)\.?weight$"


@dataclass(frozen=True)
class Need:
    """Bytes for the weights of a job; a prompt comes on top, 56 KB a token in the released model."""

    job: str
    sizes: dict[str, int]

    def __str__(self) -> str:
        each = ", ".join(f"{in_units(size)} {name}" for name, size in self.sizes.items())
        free = available()
        return f"{self.job} takes {each}" + (f"; {in_units(free)} are free here" if free else "")


def memory_needed(source: Source, job: str) -> list[Need]:
    """What loading for a job takes as it is, and with each kind of `quantize`."""
    names = [name for name in source.names if not left_out(name, JOBS[job])]
    whole = {name: math.prod(source.shape(name)) * source.dtype(name).itemsize for name in names}
    sizes = {"as it is": sum(whole.values())}
    narrow = [name for name in names if re.match(NARROW, name) and len(source.shape(name)) == 2]
    numbers = sum(math.prod(source.shape(name)) for name in narrow)
    for kind, bits in BITS.items():
        rest = sizes["as it is"] - sum(whole[name] for name in narrow)
        sizes[f"with --quantize {kind}"] = rest + int(numbers * bits / 8)
    return [Need(job, sizes)]


def in_units(size: int) -> str:
    """Bytes as GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def available() -> int:
    """Bytes that are free, with what the system can take back; 0 where it does not say."""
    file = Path("/proc/meminfo")
    if file.is_file() and (found := re.search(r"(?m)^MemAvailable:\s+(\d+) kB", file.read_text("utf8"))):
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
