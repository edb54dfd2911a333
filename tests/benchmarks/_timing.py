# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks time: sides take turns in one process, and medians are compared.

A machine is seldom quiet. So each round runs every side once, and beside the wall clock stands the time that
the processor spent on us: with one thread the two are the same on a quiet machine, and only the second can be
read on a busy one.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import torch

from monai_unimedvl.atomic import write

NANO = Path(__file__).parents[2] / "bundles" / "unimedvl_nano" / "models" / "model.safetensors"
SUMMARY = "inference"  # the section that comes first
RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = """# Results

Written by `make bench` (the summary and what it rests on) and by each section's own script (`make bench-all`
runs them all, for hours). Sides take turns in one process; numbers are medians of
all units (quartiles in brackets), ratios are the baseline's median over ours: above 1 we are faster. `CPU` is
the processor time of the process, which a busy machine cannot inflate by making us wait: where the load is
above the number of cores, the wall clock says little.
What did not help is in LOG.md.
"""


def weights() -> str:
    """Which weights of the nano the script takes, by their sha256; nothing where it takes none."""
    script = Path(sys.argv[0])
    if not script.is_file() or "unimedvl_nano" not in script.read_text("utf8"):
        return ""
    return f", nano weights {sha256(NANO.read_bytes()).hexdigest()[:12]}"


WEIGHTS = weights()  # as they are when the script begins


@dataclass
class Watch:
    """The seconds of each unit of one side: wall clock and processor."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    last: tuple[float, float] | None = None

    def tick(self) -> None:
        """A unit ends here and the next begins; the first call of a run only begins."""
        now = time.perf_counter(), time.process_time()
        if self.last is not None:
            self.wall.append(now[0] - self.last[0])
            self.cpu.append(now[1] - self.last[1])
        self.last = time.perf_counter(), time.process_time()


Side = Callable[[Callable[[], None]], None]  # does its work and calls `tick` after each unit


def take_turns(sides: dict[str, Side], rounds: int) -> dict[str, Watch]:
    """Every side once a round, after one round to warm up."""
    watches = {name: Watch() for name in sides}
    for round_ in range(rounds + 1):
        for name, side in sides.items():
            watch = watches[name] if round_ else Watch()
            watch.last = None
            side(watch.tick)
    return watches


HEAD = ["our side", "baseline, CPU ms", "ours, CPU ms", "**ratio, CPU**", "wall ms", "ratio, wall"]


def rows(label: Sequence[str], watches: dict[str, Watch]) -> list[list[str]]:
    """The cells of `HEAD`, a row for each side but the first, which is the baseline; `label` comes before."""
    (_, base), *sides = watches.items()
    return [
        [
            *label, name, _spread(base.cpu), _spread(side.cpu),
            f"**{median(base.cpu) / median(side.cpu):.2f}**",
            f"{1000 * median(base.wall):.1f}, {1000 * median(side.wall):.1f}",
            f"{median(base.wall) / median(side.wall):.2f}",
        ]
        for name, side in sides
    ]  # fmt: skip


def arguments(about: str) -> argparse.Namespace:
    """--threads, --rounds, --show; sets the threads."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=None, help="turns of each side")
    return parsed(parser)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What came for a script of options of its own, with --threads and --show; sets the threads."""
    parser.add_argument("--threads", type=int, default=1, help="of torch; more wait for each other when busy")
    parser.add_argument("--show", action="store_true", help="only print: leave RESULTS.md as it is")
    options = parser.parse_args(namespace=argparse.Namespace(rounds=None))
    torch.set_num_threads(options.threads)
    return options


def report(
    about: str,
    cells: Sequence[Sequence[str]],
    options: argparse.Namespace,
    load: float,
    *,
    name: str = "",
    quiet: bool = False,
) -> None:
    """Print the section of this script, or the one named, and put it into RESULTS.md; `quiet` only puts."""
    script = Path(sys.argv[0]).stem
    name = name or script
    table = ["| " + " | ".join(line) + " |" for line in cells]
    table.insert(1, "|" + "---|" * len(cells[0]))
    section = "\n".join([f"## {name}", "", about, "", *table, "", _circumstances(script, options, load), ""])
    if not quiet:
        print(section)
    if not options.show:
        kept = {title: part for title, part in sections().items() if title != name}
        kept[name] = section.strip()
        order = sorted(kept, key=lambda title: (title != SUMMARY, title))
        whole = "\n\n".join([TITLE.strip(), *(kept[title] for title in order)]) + "\n"
        write(RESULTS, whole)


def sections() -> dict[str, str]:
    """The sections of RESULTS.md by their names."""
    old = RESULTS.read_text("utf8") if RESULTS.is_file() else TITLE
    parts = re.split(r"(?m)^(?=## )", old)[1:]
    return {part.split("\n", 1)[0].removeprefix("## "): part.strip() for part in parts}


def load_average() -> float:
    """Processes that wanted to run in the last minute; call it before the work."""
    return os.getloadavg()[0]


def _spread(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{1000 * seconds[0]:.2f}"
    low, middle, high = (1000 * x for x in quantiles(seconds, n=4))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _circumstances(name: str, options: argparse.Namespace, load: float) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", ":/monai_unimedvl") else ""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    rounds = "" if options.rounds is None else f" --rounds {options.rounds}"
    return (
        f"`python tests/benchmarks/{name}.py --threads {options.threads}{rounds}` at commit"
        f" {git('rev-parse', '--short', 'HEAD')}{changed}, {time.strftime('%Y-%m-%d %H:%M')}"
        f"{WEIGHTS}; Python {platform.python_version()}, {versions}; {_processor()},"
        f" {os.cpu_count()} cores, load average {load:.1f} before and {load_average():.1f} after."
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"(?m)^model name\s*: (.+)$", info.read_text("utf8")) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()
