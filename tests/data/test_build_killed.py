# SPDX-License-Identifier: Apache-2.0
"""A build that is killed, anywhere, goes on to the same bytes; a killed worker costs a job, and no time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from invented import Invented, build, dies_always, dies_at_a_bar, dies_once, files, plan
from tqdm import tqdm

from monai_unimedvl.data import pipeline as pipeline_module
from monai_unimedvl.data.engines import run_all
from monai_unimedvl.data.pipeline import build_dataset
from monai_unimedvl.data.shards import check_shards

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")
pytest.importorskip("imagehash", reason="fingerprints need the extra 'data'")
pytest.importorskip("jinja2", reason="the report needs the extra 'data'")


def _build_alone(out: str, told: dict[str, Any], workers: int) -> None:
    """In a process group of its own, so that it can be killed with its workers, and with a bar of its own."""
    os.setsid()
    tqdm.set_lock(threading.RLock())  # what a killed process holds of its parent's is never given back
    build_dataset(told, out, workers=workers, progress=False)


FILES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def _build_until(out: str, told: dict[str, Any], last: int) -> None:
    """Die in a build, at its `last` deed on a file of its folder; what it would have written is torn."""
    done = 0

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        if event in FILES and str(given[0]).startswith(out):
            done += 1
            if done == last:
                if event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR):
                    os.write(os.open(given[0], given[2], 0o644), b"{")
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)  # never taken away again, hence a process of its own
    _build_alone(out, told, 1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 of a forked process needs POSIX")
def test_killed_at_any_deed_on_a_file_a_build_ends_with_the_same_bytes(tmp_path: Path) -> None:
    told, out, context = plan(count=5), tmp_path / "killed", multiprocessing.get_context("fork")
    build(tmp_path / "whole", told)
    whole = files(tmp_path / "whole")
    for last in range(1, 2000):
        child = context.Process(target=_build_until, args=(str(out), told, last))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), f"at deed {last}"
        build(out, told)
        assert files(out) == whole, f"killed at deed {last}"
        shutil.rmtree(out)
        if child.exitcode == 0:
            break
    assert 50 < last < 1999, "it was killed everywhere, and the last one ended by itself"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 of a forked group needs POSIX")
def test_two_workers_killed_at_ten_random_moments_end_with_the_same_bytes(tmp_path: Path) -> None:
    told = plan(count=60, pause=0.02)
    start = time.monotonic()
    build(tmp_path / "whole", told)
    took = time.monotonic() - start
    out, moments, killed = tmp_path / "killed", random.Random(7), 0
    context = multiprocessing.get_context("fork")
    while killed < 10:
        child = context.Process(target=_build_alone, args=(str(out), told, 2))
        child.start()
        child.join(moments.uniform(0.02, 0.35) * took)
        if child.is_alive() and not (out / "manifest.json").exists():
            os.killpg(child.pid, signal.SIGKILL)
            killed += 1
        child.join()
        if (out / "manifest.json").exists() and killed < 10:  # it was too quick: once more from the start
            build(out, told)
            assert files(out) == files(tmp_path / "whole")
            shutil.rmtree(out)
    build(out, told, workers=2)
    assert files(out) == files(tmp_path / "whole")


def test_a_disk_that_was_full_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each, read = Invented.each, []

    def full(self: Invented, part: int) -> Any:
        read.append(part)
        if len(read) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return each(self, part)

    monkeypatch.setattr(Invented, "each", full)
    with pytest.raises(ValueError, match=r"cannot go on \(No space left on device\), which is no fault"):
        build(tmp_path / "corpus", plan(count=12))
    build(tmp_path / "corpus", plan(count=12))
    build(tmp_path / "whole", plan(count=12))
    assert files(tmp_path / "corpus") == files(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the pool forks on POSIX only")
def test_a_killed_worker_loses_nothing_and_a_deadly_job_is_named(tmp_path: Path) -> None:
    jobs = [{"name": f"job {n}", "mark": str(tmp_path / "mark"), "deadly": n == 3} for n in range(8)]
    done = list(run_all(dies_once, jobs, workers=2))
    assert sorted(each["name"] for each in done) == [f"job {n}" for n in range(8)]
    with pytest.raises(ValueError, match=r"job \d killed its worker 3 times, expected it to fit into memory"):
        list(run_all(dies_always, jobs[:2], workers=2))


def _end_all(mark: str) -> None:
    """Do jobs of which one dies at a bar, and draw one's own bar after it."""
    jobs = [{"name": f"job {n}", "mark": mark, "deadly": n == 3} for n in range(8)]
    assert len(list(tqdm(run_all(dies_at_a_bar, jobs, workers=2), disable=True))) == 8
    with tqdm(disable=True):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the pool forks on POSIX only")
def test_a_worker_killed_at_a_progress_bar_holds_up_nobody(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_end_all, args=(str(tmp_path / "mark"),))
    child.start()
    child.join(120)
    waits = child.is_alive()
    child.kill()
    child.join()
    assert not waits and child.exitcode == 0 and (tmp_path / "mark").exists()


def _late(out: Path, seconds: float) -> dict[str, Any]:
    """A build whose first look at the folder is long past when it takes the lock."""
    locker = pipeline_module._locker
    time.sleep(0.2)

    def slow() -> Any:
        time.sleep(seconds)
        return locker()

    pipeline_module._locker = slow  # type: ignore[assignment]
    return build(out, plan(count=12))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two builds at once are two forked processes here")
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_two_builds_into_one_new_folder_lose_nothing(tmp_path: Path, seconds: float) -> None:
    whole = build(tmp_path / "whole", plan(count=12))
    out = tmp_path / "corpus"
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        both = [pool.submit(build, out, plan(count=12)), pool.submit(_late, out, seconds)]
        ends = [one.exception(120) for one in both]
    assert any(end is None for end in ends)
    assert all(end is None or "is being built by another process" in str(end) for end in ends), ends
    assert files(out) == files(tmp_path / "whole") and build(out, plan(count=12)) == whole


def test_a_build_that_finds_its_folder_done_or_gone_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, locker, seen = tmp_path / "corpus", pipeline_module._locker, []

    def meanwhile() -> Any:
        if not seen:  # another process ends between the look and the lock
            seen.append(True)
            shutil.rmtree(out)
            build(out, plan(count=8))
        return locker()

    monkeypatch.setattr(pipeline_module, "_locker", meanwhile)
    manifest = build(out, plan(count=8))
    assert seen and sorted(files(out)) and manifest["records"] > 0
    check_shards(out)


def test_a_build_that_fails_at_once_leaves_what_another_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = tmp_path / "corpus", pipeline_module._Build.run

    def after_another(self: Any, keep_work: bool) -> dict[str, Any]:
        monkeypatch.setattr(pipeline_module._Build, "run", run)
        run(pipeline_module._Build(self.pipeline, self.out, "local", 1, False), False)
        raise FileNotFoundError("the work has gone")

    monkeypatch.setattr(pipeline_module._Build, "run", after_another)
    with pytest.raises(FileNotFoundError):
        build(out, plan(count=8))
    check_shards(out)
