# SPDX-License-Identifier: Apache-2.0
"""Who does the jobs of a build: processes of this machine, or Ray Data on many.

A job is done again where its worker died: by a new pool here, by Ray there. Results come as they are ready;
files are the same from both, because a job writes the same bytes whoever does it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tqdm import tqdm

from monai_unimedvl.packages import needed

Job = dict[str, Any]
Work = Callable[[Job], Job]
ENGINES = ("local", "ray")
TRIES = 3  # of a job whose worker dies
STORE = 300_000_000  # bytes of Ray's store of objects: only words travel through it


def run_all(work: Work, jobs: Sequence[Job], *, engine: str = "local", workers: int = 1) -> Iterator[Job]:
    """The results of all jobs, as they are ready.

    Args:
        work: a function of a module, which any process can import.
        engine: "local" or "ray". workers: processes; 1 of "local" is this one.

    Raises:
        ValueError: no such engine, Ray is not installed, or a job kills its worker again and again.
    """
    if engine not in ENGINES or workers < 1:
        raise ValueError(
            f"engine is {engine!r} with {workers} workers, expected {' or '.join(ENGINES)} with at least 1."
        )
    if engine == "ray":
        yield from _ray(work, jobs, workers)
    elif workers == 1 or len(jobs) < 2:
        yield from map(work, jobs)
    else:
        yield from _local(work, jobs, workers)


def _local(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """A pool of processes; a broken one is replaced, and what it had in hand is done again."""
    waiting, tries = list(reversed(jobs)), Counter[str]()
    kind = (
        "fork" if sys.platform == "linux" else "spawn"
    )  # as torch's loaders: a new interpreter takes seconds
    while waiting:
        pool = ProcessPoolExecutor(
            min(workers, len(waiting)), multiprocessing.get_context(kind), _begin, (os.getpid(),)
        )
        running: dict[Future[Job], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:  # few in hand, however many there are
                    running[pool.submit(work, waiting[-1])] = waiting[-1]
                    waiting.pop()
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    result = done.result()
                    running.pop(done)
                    yield result
        except BrokenProcessPool as error:
            for job in running.values():
                tries[job["name"]] += 1
                if tries[job["name"]] >= TRIES:
                    raise ValueError(
                        f"{job['name']} killed its worker {TRIES} times, expected it to fit into memory: use "
                        "fewer workers or a smaller batch, and run again to go on."
                    ) from error
            waiting += reversed(list(running.values()))
            running.clear()
        finally:  # the next pool is forked when nothing of this one is left, not even its threads
            pool.shutdown(wait=not running, cancel_futures=True)


@contextmanager
def ray_running(workers: int) -> Iterator[Any]:
    """Ray on the cluster that RAY_ADDRESS names, else with so many workers here; ended if it was begun here.

    Raises:
        ValueError: Ray is not installed.
    """
    ray = needed("ray", "engine 'ray'", "ray")
    begun = not ray.is_initialized()
    if begun:
        here: dict[str, Any] = {"num_cpus": workers, "object_store_memory": STORE}
        ray.init(
            include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            **({} if "RAY_ADDRESS" in os.environ else here),
        )  # fmt: skip
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def quiet_data() -> Any:
    """`ray.data`, which neither logs nor draws bars."""
    data = import_module("ray.data")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return data


def _ray(work: Work, jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Ray Data, one block a job, so that a lost worker costs one job."""
    if not jobs:
        return
    with ray_running(workers):
        data = quiet_data()
        rows = data.from_items([{"job": json.dumps(job)} for job in jobs], override_num_blocks=len(jobs))
        done = rows.map(
            lambda row: {"done": json.dumps(work(json.loads(row["job"])))}, num_cpus=1,
            compute=data.TaskPoolStrategy(size=workers),
        )  # fmt: skip
        for row in done.iter_rows():
            yield json.loads(row["done"])


def _begin(parent: int) -> None:
    """A worker ends with the process that started it, even if that one is killed, and locks nobody out."""
    import torch

    tqdm.set_lock(threading.RLock())  # the inherited one is its parent's too, and a kill keeps it
    torch.set_num_threads(1)  # as in torch's loaders: threads of a forked parent are gone

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
