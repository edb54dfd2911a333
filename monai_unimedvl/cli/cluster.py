# SPDX-License-Identifier: Apache-2.0
"""The requests of a list on Ray Data: one model on each device, and a worker that dies loses nothing.

Each request is a block of its own, so what a dead worker had in hand is asked again by the next one; its
files are written whole or not at all, and the same request gives the same file on every worker.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl.cli.batch import Outcome, Worker
from monai_unimedvl.cli.lists import Request
from monai_unimedvl.data.engines import quiet_data, ray_running

BLOCKS = 1000  # at most; of longer lists a block holds several requests


class Actor:
    """One model in one process.

    Args:
        common: options of the command line.
        threads: of torch, as in the process that asks: more or fewer would change the last bits.
    """

    def __init__(self, common: dict[str, Any], folder: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.worker = Worker(Namespace(**common), Path(folder))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Outcomes of some requests, both as JSON."""
        requests = [Request(**json.loads(text)) for text in batch["request"]]
        return {"outcome": [json.dumps(self.worker(request)) for request in requests]}


def on_ray(options: Namespace, worker: Worker, todo: Sequence[Request]) -> Iterator[Outcome]:
    """The outcomes, as they come from `options.workers` processes.

    With RAY_ADDRESS set they run on that cluster, whose machines must see the same folders.

    Raises:
        ValueError: Ray is not installed, or a device of a number was named.
    """
    workers, cuda = workers_of(options, len(todo))
    if not todo:
        return
    rows = [{"request": json.dumps(asdict(request))} for request in todo]
    common = {**vars(options), "quiet": True}
    with ray_running(workers):
        done = quiet_data().from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
            Actor,
            fn_constructor_args=(common, str(worker.folder.absolute()), torch.get_num_threads()),
            batch_size=1, concurrency=workers, num_cpus=1, num_gpus=1 if cuda else None,
        )  # fmt: skip
        for row in done.iter_rows():
            yield json.loads(row["outcome"])


def workers_of(options: Namespace, most: int) -> tuple[int, bool]:
    """How many processes Ray is asked for, `most` at most, and whether each gets a CUDA device.

    Raises:
        ValueError: a device of a number was named.
    """
    if ":" in options.device:
        raise ValueError(f"--device {options.device} came, but Ray hands the devices out: use --device cuda.")
    cuda = options.device == "cuda"
    return min(options.workers or (torch.cuda.device_count() if cuda else 2), most), cuda
