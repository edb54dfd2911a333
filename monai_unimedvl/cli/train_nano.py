# SPDX-License-Identifier: Apache-2.0
"""`unimedvl train-nano`: make the shipped weights again from packages alone, and compare their scores.

It says what it takes before it starts, runs the legs of `configs/legs.json` one after the other, and goes on
where it was when it is killed: the same command again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unimedvl.cli import options as o

if TYPE_CHECKING:
    from monai_unimedvl.bundle.legs import Chain, Leg
    from monai_unimedvl.cli.command import Result

LONGEST = 100_000  # minutes of a sitting: some months
GRACE = 20  # seconds that a leg has to end when its time is up


def add_options(verbs: Any) -> None:
    """The words of `unimedvl train-nano`."""
    verb: argparse.ArgumentParser = o.add(
        verbs, "train-nano", "make the nano's weights again, leg after leg, and compare scores",
        "--out runs/nano", model=False,
    )  # fmt: skip
    verb.add_argument("--seed", type=o.seed, help="of samples, times and noise (default: the shipped one's)")
    verb.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")
    verb.add_argument("--budget", action="store_true", help="say what it takes, and start nothing")
    verb.add_argument("--sittings", type=o.whole(1), help="at most so many now (default: until it is done)")
    verb.add_argument("--minutes", type=float, help="of a sitting (default: 100)")
    verb.add_argument("--cores", type=o.whole(1), help="threads (default: those of the list of legs)")
    verb.add_argument("--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans")
    verb.add_argument(
        "--partial", action="store_true", help="train on the sources that are there; scores say less then"
    )
    verb.add_argument("--legs", metavar="FILE", help="another list of legs, beside its configs")


def train_nano(options: Namespace) -> Result:
    """Budget, legs, evaluation, comparison.

    Raises:
        ValueError: sources that are absent, a leg that failed, or a folder that another run works in.
    """
    from monai_unimedvl.bundle import legs

    if options.minutes is not None and not 0 < options.minutes < LONGEST:
        raise ValueError(
            f"--minutes {options.minutes:g} came, expected a number above 0 and below {LONGEST}: correct it."
        )
    chain = legs.read_chain(options.legs or legs.DEFAULT)
    if options.minutes is not None:
        chain = replace(chain, longest=options.minutes)
    out, free = Path(options.out or "runs/nano"), options.permissive_only
    _say(options, "\n".join(chain.budget(free, options.seed)))
    if options.budget:
        return [], {"done": [leg.name for leg in chain.legs if legs.is_done(out, leg)]}
    _check_sources(options)
    with _alone(out) as lock:
        left = options.sittings or sys.maxsize
        for leg in chain.legs:
            while not legs.is_done(out, leg):
                if not left:
                    return _unfinished(chain, out)
                left -= 1
                _sit(chain, leg, out, options, lock)
        return _compare(chain, out, options)


def _sit(chain: Chain, leg: Leg, out: Path, options: Namespace, lock: int) -> None:
    """One sitting of a leg: until it is done or its time is up."""
    from monai_unimedvl.bundle import legs

    longest = chain.longest
    before, encoder = legs.checkpoint(out, leg)[0], legs.encoder_step(out, leg)
    beside = f", its encoder from step {encoder}" if encoder and not before else ""
    _say(options, f"leg {leg.name}: from step {before} of {leg.steps}{beside}, at most {longest:g} minutes")
    words = legs.command(
        chain, leg, out, root=options.atlas, seed=options.seed, permissive_only=options.permissive_only
    )
    folder = legs.folder_of(out, leg)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(options.cores or chain.cores)
    start = time.monotonic()
    with (folder / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,),
            env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            code = child.wait(longest * 60)
        except subprocess.TimeoutExpired:
            code = 0  # the time was up, and the next sitting goes on
        finally:
            _end(child)
    after = legs.checkpoint(out, leg)[0]
    further = after > before or legs.encoder_step(out, leg) > encoder or legs.is_done(out, leg)
    minutes = (time.monotonic() - start) / 60
    if code or not further:
        why = f"stopped with code {code}" if code else f"got no further than step {after}"
        raise ValueError(f"leg {leg.name!r} {why} after {minutes:.0f} minutes: see {folder / 'log.txt'}.")
    state = "done" if legs.is_done(out, leg) else f"at step {after}; its time was up"
    _say(options, f"leg {leg.name}: {state}, after {minutes:.1f} minutes")


def _compare(chain: Chain, out: Path, options: Namespace) -> Result:
    """Score the last leg's weights on all held-out items, beside the shipped scores."""
    from monai_unimedvl import bundle, evaluation
    from monai_unimedvl.atomic import write
    from monai_unimedvl.bundle.legs import folder_of
    from monai_unimedvl.evaluation import reproduction

    weights, scores = folder_of(out, chain.legs[-1]) / "weights", out / "scores"
    _say(options, f"evaluation of {weights} on the held-out items")
    if not (scores / "report.json").is_file():
        network, tokenizer = bundle.load(weights)
        evaluation.evaluate(
            network, tokenizer, root=options.atlas, permissive_only=options.permissive_only, out=scores,
            progress=not options.quiet, weights=bundle.digest(weights), name="nano",
            **chain.evaluation.get("settings", {}),
        )  # fmt: skip
    here = evaluation.Report.load(scores)
    shipped = bundle.scores("scores-permissive" if options.permissive_only else "scores")
    if shipped is None:
        lines = [f"wrote {weights} and {scores}; there are no shipped scores to compare with"]
        return lines, {"outputs": [str(weights), str(scores)]}
    found = reproduction.matches(here.rows, shipped.rows)
    text = reproduction.table(found)
    if here.about.get("items") != shipped.about.get("items", here.about.get("items")):
        text += "\nScored on other items than the shipped (a limit, absent sources): no comparison of like."
    write(out / "comparison.md", f"{text}\n")
    worse = reproduction.worst(found)
    lines = [text, f"wrote {weights}, {scores} and {out / 'comparison.md'}"]
    if worse:
        lines += [f"worse than the shipped interval, or no number: {line}" for line in worse]
    return lines, {"outputs": [str(weights), str(scores)], "worse": worse, "rows": len(found)}


def _say(options: Namespace, text: str) -> None:
    """Tell at once; beside --json on stderr."""
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def _unfinished(chain: Chain, out: Path) -> Result:
    """What is done and left, when the sittings asked for are used up."""
    from monai_unimedvl.bundle import legs

    rest = [leg for leg in chain.legs if not legs.is_done(out, leg)]
    step, _ = legs.checkpoint(out, rest[0])
    lines = [f"left: {legs.names_of(rest)} (at step {step} of {rest[0].steps}); the same command goes on"]
    return lines, {"left": [leg.name for leg in rest], "step": step}


def _check_sources(options: Namespace) -> None:
    """Raises ValueError: a package of the corpus is absent."""
    from monai_unimedvl.data.atlas import AtlasDataset

    found = AtlasDataset(
        options.atlas, "train", tasks=["caption"], permissive_only=options.permissive_only, progress=False
    )
    if found.missing and not options.partial:
        raise ValueError(
            f"{', '.join(found.missing)} of the corpus came not, expected every source: run `unimedvl data"
            " fetch-atlas`, or use --partial."
        )


@contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Hold a folder against other runs; a leg that outlives its killed parent still holds it.

    Raises:
        ValueError: another run holds it.
    """
    import fcntl  # not everywhere: the other verbs must start without it

    out.mkdir(parents=True, exist_ok=True)
    lock = os.open(out / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{out} is held by another run, or by the leg of one that was killed: wait for it, end it, or"
                " choose another --out."
            ) from error
        yield lock
    finally:
        os.close(lock)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a leg that still runs, by and by."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
