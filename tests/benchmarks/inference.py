# SPDX-License-Identifier: Apache-2.0
"""One table of what inference shall reach: both sides of each row in turns, in this run.

Drawing from words is the public `gen_image`: of its three forwards a step the third repeats the first, which
is left out here; an edit has three different ones. A long past and drawings are held against transcriptions
of the public scheme, all else against transformers or against ours alone.

Rows that other scripts measure for long (the full size, solvers, answers of few bits, the server) are read
from their sections of RESULTS.md, and say so. Rows in bfloat16 bind where the processor has amx_bf16. Why a
row is not reached is told in LOG.md, with the profile.
About ten minutes on one quiet core. The sections branches, decode, draw, engine and prefill are written anew
from the same measurements; their own scripts measure more shapes.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import branches
import decode
import draw
import engine
import prefill
import torch
from _timing import SUMMARY, Watch, arguments, load_average, report, rows, sections

from monai_unimedvl.networks.fast import make_fast

SMALL, LARGE = "27M: hidden 512, 8 layers", "0.5B: hidden 896, 24 layers"
FULL, HALF = torch.float32, torch.bfloat16
LATENT = {8: ("64", 2.2), 16: ("256", 1.8), 32: ("1,024", 1.3)}  # tokens a side: tokens, wanted
HEAD = ["what", "theirs", "ours", "**ratio**", "wanted", "reached"]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        ratio: theirs over ours, or what stands for it; None where it is told in `verdict`.
        wanted: None where a row is only reported.
        half: in bfloat16, so that it binds with amx_bf16 only.
        most: `wanted` is an upper limit.
    """

    what: str
    theirs: str
    ours: str
    ratio: float | None = None
    wanted: float | None = None
    half: bool = False
    most: bool = False
    verdict: str = ""

    def cells(self) -> list[str]:
        """Under `HEAD`."""
        ratio = "" if self.ratio is None else f"**{self.ratio:.2f}**"
        sign = "<=" if self.most else ">="
        wanted = "" if self.wanted is None else f"{sign} {self.wanted:g}"
        return [self.what, self.theirs, self.ours, ratio, wanted, self.verdict or self._verdict()]

    def _verdict(self) -> str:
        if self.wanted is None or self.ratio is None:
            return "reported"
        if self.ratio <= self.wanted if self.most else self.ratio >= self.wanted:
            return "yes"
        short = self.wanted / self.ratio if self.most else self.ratio / self.wanted
        said = f"no: {short:.0%} of it"
        return f"({said}; binds with amx_bf16)" if self.half and not has_amx() else said


def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_bf16" in info.read_text("utf8").split()


def ms(watch: Watch, wall: bool = False) -> str:
    """The median unit."""
    return f"{1000 * median(watch.wall if wall else watch.cpu):.2f} ms"


def against(
    what: str, watches: dict[str, Watch], side: str, wanted: float | None, *, half: bool = False,
    base: str = "", wall: bool = False,
) -> Row:  # fmt: skip
    """A side against the first one, or against `base`."""
    theirs, ours = watches[base or next(iter(watches))], watches[side]
    seconds = [median(one.wall if wall else one.cpu) for one in (theirs, ours)]
    return Row(what, ms(theirs, wall), ms(ours, wall), seconds[0] / seconds[1], wanted, half)


class Table:
    """Rows as they come: each is printed at once, and RESULTS.md is kept up to date."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.load, self.start = options, load_average(), time.monotonic()
        self.cells = [HEAD]

    def add(self, part: Iterator[Row]) -> None:
        """What a part measured."""
        for row in part:
            gc.collect()  # networks of the row before
            self.cells.append(row.cells())
            print("  " + " | ".join(self.cells[-1]), flush=True)
        minutes = (time.monotonic() - self.start) / 60
        about = f"{(__doc__ or '').strip()} This CPU has {'' if has_amx() else 'no '}amx_bf16."
        about += f" `theirs` and `ours` are processor time; measured in {minutes:.0f} minutes."
        self.whole = (about, list(self.cells), self.options, self.load)
        report(*self.whole, name=SUMMARY, quiet=True)

    def detail(self, name: str, about: str, cells: list[list[str]]) -> None:
        """A section of its own for the rows behind."""
        report(about, cells, self.options, self.load, name=name, quiet=True)


def decoding(table: Table) -> Iterator[Row]:
    """Greedy words of one sample."""
    found = [decode.COLUMNS]
    for dtype in (FULL, HALF):
        watches, lines = decode.measured(SMALL, dtype, 3, ("compiled",))
        found += lines
        name = f"decode, 27M, {kind(dtype)}, against transformers"
        yield against(name, watches, "compiled", 1.5, half=dtype == HALF)
    sides = ("compiled", "int8, compiled", "int4", decode.FLOOR)
    watches, lines = decode.measured(LARGE, HALF, 2, sides)
    found += lines
    yield against("decode, 0.5B, bfloat16, one thread", watches, "compiled", 1.15, half=True)
    floor = [median(watches[name].cpu) for name in (decode.FLOOR, "compiled")]
    yield Row(
        "the same, share of the floor of its linear layers", ms(watches[decode.FLOOR]),
        ms(watches["compiled"]), floor[0] / floor[1], 0.9, True,
    )  # fmt: skip
    yield against("decode, 0.5B, int8, against bfloat16", watches, "int8, compiled", 1.8, half=True)
    yield against("decode, 0.5B, int4, against bfloat16", watches, "int4", 3.2, half=True)
    yield from two_threads(table)
    table.detail("decode", decode.ABOUT, found)


def two_threads(table: Table) -> Iterator[Row]:
    """The large shape by the wall clock, where this process may use two cores."""
    name = "decode, 0.5B, bfloat16, two threads (wall clock)"
    share = "the same, share of the floor of its linear layers, two threads"
    if cores() < 2:
        why = "not measured: this run has one core"
        yield Row(name, "", "", None, 1.15, True, verdict=why)
        yield Row(share, "", "", None, 0.9, True, verdict=why)
        return
    torch.set_num_threads(2)
    try:
        watches, lines = decode.measured(LARGE, HALF, 2, ("compiled", decode.FLOOR))
    finally:
        torch.set_num_threads(table.options.threads)
    yield against(name, watches, "compiled", 1.15, half=True, wall=True)
    yield against(share, watches, "compiled", 0.9, half=True, wall=True, base=decode.FLOOR)
    about = f"{decode.ABOUT} Two threads: only the wall clock counts."
    table.detail("decode, two threads", about, [decode.COLUMNS, *lines])


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading(table: Table) -> Iterator[Row]:
    """A prompt of 128 tokens."""
    found = [prefill.COLUMNS]
    for label, wanted in ((LARGE, 3.0), (SMALL, None)):
        watches, lines = prefill.measured(label, HALF, 3)
        found += lines
        name = f"prefill of 128 tokens, {label.split(':')[0]}, bfloat16"
        yield against(name, watches, "make_fast", wanted, half=True)
    table.detail("prefill", prefill.ABOUT, found)


def at_once(table: Table) -> Iterator[Row]:
    """Long pasts, several prompts, several questions."""
    found = [engine.COLUMNS]
    for dtype in (FULL, HALF):
        made = engine.network(engine.SHAPES[engine.LABEL], dtype, fast=True)
        half = dtype == HALF
        watches, lines = engine.long_past(made, f"{kind(dtype)}, make_fast", 3)
        found += lines
        name = f"decode at 4,096 tokens, 27M, {kind(dtype)}, against a cache copied a word"
        yield against(name, watches, "4,096 tokens", 1.6, half=half)
        times = [median(watches[side].cpu) for side in ("4,096 tokens", "128 tokens")]
        what = "the same against 128 tokens, times as long"
        yield Row(what, ms(watches["128 tokens"]), ms(watches["4,096 tokens"]), times[0] / times[1], 1.35,
                  half, most=True)  # fmt: skip
        watches, lines = engine.speaking(made, f"{kind(dtype)}, make_fast", 2)
        found += lines
        name = f"8 prompts of different lengths, 27M, {kind(dtype)}, words a second against alone"
        yield against(name, watches, "together", 6.0, half=half)
        for image, what, wanted in (
            (False, "the same, and reading the prompts (24 words each)", 6.0),
            (True, "8 questions about one image", 3.0),
        ):
            watches, lines = engine.at_once(made, f"{kind(dtype)}, make_fast", image, 2)
            found += lines
            yield against(f"{what}, {kind(dtype)}, against alone", watches, "together", wanted, half=half)
    made = engine.network(engine.SHAPES[engine.LABEL], FULL, fast=False)
    watches, lines = engine.at_once(made, "float32, as it comes", False, 2)
    found += lines
    yield against("8 prompts read and answered, float32, layers as they come", watches, "together", 6.0)
    grown = engine.growth(made)
    yield Row(
        "resident memory from request 50 to 200", f"{grown[0]} MiB", f"{grown[3]} MiB", float(grown[4]),
        20.0, most=True,
    )  # fmt: skip
    table.detail("engine", engine.ABOUT, found)


def drawing(table: Table) -> Iterator[Row]:
    """A guided step against a forward for each branch."""
    found, apart = [draw.COLUMNS], [branches.COLUMNS]
    label = "hidden 512, 8 layers"
    shape, _ = draw.SHAPES[label]
    for dtype in (FULL, HALF):
        made = make_fast(draw.network(shape, dtype))
        for what in draw.KINDS:
            context = draw.read(made, what)
            for across, (tokens, wanted) in LATENT.items():
                for interval in (False, True):
                    if interval and (across == 32 or what == "edit"):
                        continue
                    steps = 6 if interval else 2 if across == 32 else 4
                    rounds = {8: 3, 16: 2, 32: 1}[across]
                    watches, error = draw.measured(
                        context, what, across, rounds, steps=steps, interval=interval, plain=False
                    )
                    side = "flow_steps, make_fast"
                    name = f"{what}{', interval (0.4, 1]' if interval else ''}"
                    found += draw.cells(label, name, across, dtype, watches, error)
                    name = f"draw {name}, {tokens} latent tokens, {kind(dtype)}"
                    yield against(name, watches, side, None if interval else wanted, half=dtype == HALF)
        for across, (tokens, _) in LATENT.items():  # `context` is that of the edit
            watches = branches.measured(context, across, 1)
            apart += rows([label, tokens, kind(dtype)], watches)
            name = f"three branches in one forward against one each, {tokens} latent tokens, {kind(dtype)}"
            yield against(name, watches, "one forward", None)
    table.detail("draw", draw.ABOUT, found)
    table.detail("branches", branches.ABOUT, apart)


def recorded(_: Table) -> Iterator[Row]:
    """What other scripts have written."""
    known = sections()

    def when(section: str) -> str:
        """Of a recorded row: which script, its day, and the weights that it took."""
        found = re.search(
            r"at commit .*?, (\d{4}-\d\d-\d\d)(?:.*?, nano weights (\w+))?", known.get(section, "")
        )
        day, weights = found.groups() if found else (None, None)
        return f"recorded: {', '.join(filter(None, (section, day, weights and f'weights {weights}')))}"

    def line(section: str, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, known.get(section, ""))

    for task in ("sr4", "seg-tissue", "t1-to-t2"):
        row = rf"\| {task} \| ([^|]+) \| (\d+) \| ([^|]+) \| [\d.]+ \| yes \| ([\d.]+)"
        tries = re.findall(row, known.get("solvers", ""))
        what = f"evaluations to the score of 50 steps, {task} ({when('solvers')})"
        if not tries:
            yield Row(what, "", "", verdict="not recorded: run solvers.py")
            continue
        whole = max(tries, key=lambda one: int(one[1]))
        best = min(tries, key=lambda one: int(one[1]))
        told = [f"{n}, {solver}: {score}, sharpness {sharp}" for solver, n, score, sharp in (whole, best)]
        yield Row(what, *told, float(best[1]), 4.0, most=True)
    found = line("quantise", r"\| int8 \|[^|]*\| ([\d.]+) %")
    share = float(found[1]) if found else None
    what = f"int8 greedy answers of the nano equal to float32, % ({when('quantise')})"
    yield Row(what, "", "", share, 99.0, verdict="" if found else "not recorded: run quantise.py")
    found = line("fullsize", r"\| released, int8 \|.*\*\*([\d.]+) GiB\*\* \| (\S+) \|")
    what = f"load of a full-size checkpoint for answering, int8, peak GiB ({when('fullsize')})"
    ours = f"swap {found[2]}, then a word" if found else ""
    yield Row(what, "", ours, float(found[1]) if found else None, 13.0, most=True,
              verdict="" if found else "not recorded: run fullsize.py")  # fmt: skip
    found = line("serve", r"memory from request 50 to 200 \| (-?[\d.]+) MiB")
    what = f"resident memory of the server from request 50 to 200, MiB ({when('serve')})"
    yield Row(what, "", "", float(found[1]) if found else None, 20.0, most=True,
              verdict="" if found else "not recorded: run serve.py")  # fmt: skip


def kind(dtype: torch.dtype) -> str:
    """Its name."""
    return str(dtype).removeprefix("torch.")


PARTS: dict[str, Callable[[Table], Iterator[Row]]] = {
    "decoding": decoding, "reading": reading, "at_once": at_once, "drawing": drawing, "recorded": recorded,
}  # fmt: skip


def main() -> None:
    """All parts, in order."""
    options = arguments((__doc__ or "").split("\n")[0])
    table = Table(options)
    failed = []
    for name, part in PARTS.items():
        print(f"== {name}", flush=True)
        try:
            table.add(part(table))
        except Exception as error:  # the other parts go on, and the table says what is missing
            traceback.print_exc()
            failed.append(name)
            said = f"stopped by {type(error).__name__}: {error}".split("\n")[0]
            table.add(iter([Row(f"the rest of {name}", "", "", verdict=said)]))
    options.show = True  # it is written: what is left is to print it
    report(*table.whole, name=SUMMARY)
    if failed:
        raise SystemExit(f"{', '.join(failed)} stopped: see above.")


if __name__ == "__main__":
    main()
