# SPDX-License-Identifier: Apache-2.0
"""Sources and steps of one YAML -> shards, a manifest, a card; goes on where it was killed.

    build_dataset("pipeline.yaml", "corpus", workers=2)

Steps that do each record by itself run in a pass over parts of the corpus, in any process. Steps that decide
on the whole (`Whole`) get notes of that pass and give verdicts, which the next pass obeys; so a corpus is
read once, and once more for every such step that is followed by others. Every part, list of verdicts and
shard is written under another name first; what is there is whole, and is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_unimedvl.atomic import PART, new_file
from monai_unimedvl.data.engines import run_all
from monai_unimedvl.data.files import write_json
from monai_unimedvl.data.finish import PAPERS, finish
from monai_unimedvl.data.jobs import TALLY, Job, parts_of, run_job
from monai_unimedvl.data.licences import refuse_for_commerce
from monai_unimedvl.data.plan import (
    SHARDS,
    Pipeline,
    must_be_each,
    name_of,
    passes_of,
    read_pipeline,
    resolved,
    with_shards,
)
from monai_unimedvl.data.shards import MANIFEST, check_shards
from monai_unimedvl.data.step import Source, make, step_class
from monai_unimedvl.data.verdicts import decide
from monai_unimedvl.packages import MissingPackage

WORK = ".work"  # in the folder of the corpus, until it is whole
AGAIN = "throw it away with --restart (restart=True)"
PLAN = "plan.json"  # in it, once all that is asked for is known to fit


def build_dataset(
    pipeline: Pipeline | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    engine: str = "local",
    workers: int = 1,
    commercial: bool | None = None,
    restart: bool = False,
    keep_work: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Build a corpus: shards, manifest.json, card.md, croissant.json, report.html; returns the manifest.

    A build that was stopped goes on where it was. The same pipeline gives the same manifest, with any engine
    and any number of workers.

    Args:
        pipeline: a YAML file, or what it says. out: folder of the corpus.
        engine: "local" processes or "ray". workers: of either.
        commercial: refuse licences that forbid commercial use or are not known; None: as the pipeline says.
        restart: throw away what another pipeline has left in the folder.
        keep_work: keep the parts, for inspection.

    Raises:
        MissingPackage: what a file needs is not installed; no file is at fault, and so nothing is rejected.
        ValueError: a pipeline that does not fit, a folder in use or of another pipeline, a refused licence.
    """
    if isinstance(pipeline, str | Path):
        pipeline = read_pipeline(pipeline)
    elif isinstance(pipeline, Mapping):
        pipeline = Pipeline(**pipeline)
    if commercial is not None:
        pipeline = with_shards(pipeline, commercial=commercial)
    out = Path(out)
    if restart and out.is_dir():
        with suppress(_Gone), _alone(out / WORK):  # not that of somebody who is at work
            _remove(out)
    while True:
        if (out / MANIFEST).is_file():
            manifest = check_shards(out, "sizes")
            if manifest.get("pipeline") != pipeline.digest:
                raise ValueError(
                    f"{out} holds a corpus of another pipeline: choose another folder, or {AGAIN}."
                )
            shutil.rmtree(out / WORK, ignore_errors=True)  # left where the end of a build was killed
            return manifest
        if out.is_dir() and any(out.iterdir()) and not (out / WORK).is_dir():
            raise ValueError(f"{out} holds other files, expected a new folder: choose another.")
        fresh = not out.exists()
        with suppress(_Gone), _alone(out / WORK):
            if not (out / MANIFEST).is_file():  # somebody may have ended while this one waited
                return _build(pipeline, out, engine, workers, progress, keep_work, fresh)


def _build(
    pipeline: Pipeline, out: Path, engine: str, workers: int, progress: bool, keep_work: bool, fresh: bool
) -> dict[str, Any]:  # fmt: skip
    """Build; where it fails before anything was begun, leave no `fresh` folder."""
    try:
        return _Build(pipeline, out.resolve(), engine, workers, progress).run(keep_work)
    except Exception:
        if not (out / WORK / PLAN).is_file() and not (out / MANIFEST).is_file():
            shutil.rmtree(out / WORK, ignore_errors=True)
            if fresh:
                with suppress(OSError):  # somebody else has put something there
                    out.rmdir()
        raise


class _Build:
    """One build: its plan, then pass by pass what is missing."""

    def __init__(self, pipeline: Pipeline, out: Path, engine: str, workers: int, progress: bool) -> None:
        self.pipeline, self.out, self.work = pipeline, out, out / WORK
        self.engine, self.workers, self.progress = engine, workers, progress
        self.passes = passes_of([self._step(each) for each in pipeline.steps])
        _clean(self.work)
        _clean(self.out)

    def run(self, keep_work: bool) -> dict[str, Any]:
        """See `build_dataset`."""
        settings = {**SHARDS, **self.pipeline.shards}
        self._lay_out()
        jobs, absent = self._plan()
        _forget_broken(self.work)
        if settings["commercial"]:
            refuse_for_commerce(str(source.get("licence", "")) for source in self.pipeline.sources
                                if "licence" in source)  # fmt: skip
        count = len(jobs)
        for number, each in enumerate(self.passes):
            if number:
                told = {"before": number - 1, "decisions": len(self.passes[number - 1].wholes)}
                jobs = [self._job("map", number, part, told) for part in range(count)]
            self._do(jobs, f"pass {number + 1} of {len(self.passes)}")
            for place, options in enumerate(each.wholes):
                decide(self.work, number, place, options, count)
        return finish(
            self.work, self.out, self.pipeline, passes=[len(each.wholes) for each in self.passes],
            parts=count, absent=absent, settings=settings, do=self._do, keep_work=keep_work,
        )  # fmt: skip

    def _plan(self) -> tuple[list[Job], list[str]]:
        """The jobs of the first pass, and the optional sources that are not there."""
        jobs: list[Job] = []
        absent: list[str] = []
        listed: list[Any] = []
        for number, source in enumerate(self.pipeline.sources):
            given = dict(source)
            chain = [self._step(each) for each in given.pop("steps", ())]
            optional = given.pop("optional", False)
            label = f"{step_class(name_of(given)).name} {given.get('dataset', number + 1)}"
            try:
                options = self._step(given)
                step = make(json.loads(options))
                if not isinstance(step, Source):
                    raise TypeError(
                        f"source {number + 1} is the step {step.name!r}, expected one that reads."
                    )
                parts = parts_of(options)
            except TypeError as error:
                raise ValueError(f"{error} Name a source such as ingest.") from error
            except MissingPackage:
                raise
            except ValueError as error:
                if not optional:
                    raise ValueError(f"source {number + 1} ({label}): {error}") from error
                absent.append(label)
                listed.append(None)
                continue
            for options_of_step in chain:
                must_be_each(options_of_step)
            listed.append([len(parts), hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]])
            for first in range(0, len(parts), self.pipeline.batch):
                more = {"source": options, "label": label, "first": first,
                        "stop": min(first + self.pipeline.batch, len(parts))}  # fmt: skip
                job = self._job("read", 0, len(jobs), more)
                jobs.append({**job, "steps": [*chain, *job["steps"]]})
        if not jobs:
            raise ValueError(
                f"none of the sources is there ({', '.join(absent)}): fetch one, or mend its path."
            )
        self._same_plan({"pipeline": self.pipeline.digest, "sources": listed})
        return jobs, absent

    def _same_plan(self, plan: dict[str, Any]) -> None:
        """Keep the plan of the first run; a later one must be the same."""
        path = self.work / PLAN
        if not path.is_file():
            write_json(path, plan)
        elif (known := json.loads(path.read_text("utf8"))) != plan:
            what = "another pipeline" if known.get("pipeline") != plan["pipeline"] else "other source files"
            raise ValueError(
                f"{self.out} was begun with {what}, expected the same to go on: choose another folder, or "
                f"{AGAIN}."
            )

    def _job(self, kind: str, number: int, part: int, more: dict[str, Any]) -> Job:
        one = self.passes[number]
        return {
            "kind": kind, "name": f"part {part} of pass {number}", "work": str(self.work), "pass": number,
            "number": part, "steps": list(one.each), "notes": list(one.wholes),
            "check": number == len(self.passes) - 1, **more,
        }  # fmt: skip

    def _do(self, jobs: Sequence[Job], what: str) -> None:
        done = run_all(run_job, jobs, engine=self.engine, workers=self.workers)
        for _ in tqdm(done, desc=what, total=len(jobs), disable=not self.progress, unit="part"):
            pass

    def _resolved(self, value: Any) -> Any:
        """See `resolved`; `files:name` is a folder of the files that the pipeline names."""
        if isinstance(value, str) and value.startswith("files:"):
            return str(self.work / "files" / value.removeprefix("files:"))
        return resolved(value)

    def _lay_out(self) -> None:
        """Put the files that the pipeline names where its sources look for them; those missing are left."""
        for name, held in self.pipeline.files.items():
            path = (self.work / "files" / name).resolve()
            if not path.is_relative_to(self.work):
                raise ValueError(f"files names {name!r}, which is outside of the folder: take out the '..'.")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(held, Mapping):
                write_json(path, held)
            elif not path.is_file():
                try:
                    source = Path(str(resolved(held)))
                except ValueError:
                    continue  # the source that needs it says so, or is optional
                if source.is_file():
                    with new_file(path) as part:
                        shutil.copyfile(source, part)

    def _step(self, options: Mapping[str, Any]) -> str:
        """The options of a step as JSON: with paths of this machine, the corpus as root, and a seed.

        Raises:
            ValueError: see `make`.
        """
        given = {key: self._resolved(value) for key, value in options.items()}
        known = {each.name for each in fields(step_class(name_of(given)))}
        if "root" in known:
            given.setdefault("root", str(self.work / "corpus"))
            (self.work / "corpus").mkdir(exist_ok=True)
        if "seed" in known:
            given.setdefault("seed", self.pipeline.seed)
        return json.dumps(given, sort_keys=True)


class _Gone(Exception):  # noqa: N818  no fault
    """Who held the lock has taken the folder away, as at the end of a build: look again."""


class _alone:  # noqa: N801  a context, used like a function
    """Nobody else builds in the folder at the same time; the lock goes with the process.

    Raises:
        ValueError: somebody does. _Gone: somebody has just done so.
    """

    def __init__(self, work: Path) -> None:
        self.path = work / "lock"

    def __enter__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = self.path.open("w")
        except FileNotFoundError as error:
            raise _Gone from error
        lock = _locker()
        for second in range(6):  # workers of a killed build hold it until they notice
            try:
                lock(self.stream)
                if self._is_there():
                    return
                self.stream.close()
                raise _Gone
            except OSError as error:
                if second == 5:
                    self.stream.close()
                    raise ValueError(
                        f"{self.path.parent.parent} is being built by another process: wait, or stop it."
                    ) from error
                time.sleep(1)

    def _is_there(self) -> bool:
        """Whether what is locked is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self.stream.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def __exit__(self, *_: object) -> None:
        self.stream.close()


def _locker() -> Callable[[Any], None]:
    """A function that locks a file or raises OSError; where a system has none, one that does nothing."""
    try:
        import fcntl
    except ImportError:  # Windows: two builds in one folder are the user's own fault
        return lambda stream: None
    return lambda stream: fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(out: Path) -> None:
    """Take a corpus, or the beginning of one, out of a folder, and nothing else."""
    for name in (MANIFEST, *PAPERS):
        (out / name).unlink(missing_ok=True)
    for shard in out.glob("shard-*.parquet"):
        shard.unlink()
    shutil.rmtree(out / WORK, ignore_errors=True)


def _clean(folder: Path) -> None:
    """Remove what a killed process has left half-written."""
    for path in list(_leftovers(folder)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _forget_broken(work: Path) -> None:
    """Take out the parts that kept nothing since a step broke, so that they are done once more.

    What broke it may be mended by now. They stay where something that was kept rests on their pass.
    """
    passes = [_tallies(work / f"pass-{number}") for number in range(len(list(work.glob("pass-*"))))]
    if any(work.glob("shards/*.json")):
        return
    for number, tallies in enumerate(passes):
        broken = [part for part, tally in tallies.items() if _is_broken(tally)]
        upon = passes[number + 1 :] + [tallies] * any(work.glob(f"verdicts-{number}-*"))
        if broken and not any(tally["records"] for each in upon for tally in each.values()):
            for other in reversed(range(number, len(passes))):  # what rests on a part goes before it
                above = [work / f"pass-{other}"] if other > number else broken
                for path in (*work.glob(f"verdicts-{other}-*"), *above):
                    aside = path.with_name(f".tmp-{path.name}")
                    path.rename(aside)  # a part is there as a whole, or not at all
                    shutil.rmtree(aside)
            return


def _tallies(folder: Path) -> dict[Path, dict[str, Any]]:
    """Part of a pass -> what was counted in it."""
    return {path.parent: json.loads(path.read_text("utf8")) for path in folder.glob(f"part-*/{TALLY}")}


def _is_broken(tally: Mapping[str, Any]) -> bool:
    """Whether a part kept nothing, and not only for reasons that were foreseen."""
    return not tally["records"] and any("unexpected" in step["reasons"] for _, step in tally["steps"])


def _leftovers(folder: Path) -> Iterator[Path]:
    for path in [folder, *folder.glob("pass-*")] if folder.is_dir() else []:
        with os.scandir(path) as entries:
            for each in entries:
                if each.name.startswith(".tmp-") or each.name[0] == "." and each.name.endswith(PART):
                    yield Path(each.path)
