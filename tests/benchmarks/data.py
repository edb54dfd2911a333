# SPDX-License-Identifier: Apache-2.0
"""Records a second of a build (coarse, dedup, shards) by the number of records, and the memory it takes.

python tests/benchmarks/data.py --sizes 1000 10000 100000 --workers 2

Each size is a build of its own in processes of its own. The decisions, which alone see all notes at once,
are also measured without their pictures, up to a million notes; what 5.6 million records take is worked out.
"""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from _timing import load_average, parsed, report
from PIL import Image

from monai_unimedvl.data.dedup import Dedup, UniqueIds
from monai_unimedvl.data.pipeline import build_dataset
from monai_unimedvl.data.record import ImageFile, Message, Record, stable_id
from monai_unimedvl.data.step import Source, option

PAPER = 5_600_000  # records of UniMed-5M's first stage
SIDE = 64
WORDS = (
    "left right upper lower lobe kidney liver spleen lesion cyst nodule clear effusion small large".split()
)


@dataclass(frozen=True, kw_only=True)
class Drawn(Source):
    """Smooth random pictures with a sentence each; one in fifty is there twice."""

    name: ClassVar[str] = "drawn"
    about: ClassVar[str] = "smooth random pictures"
    count: int = option(1000, "how many")

    def parts(self) -> range:
        """Numbers."""
        return range(self.count)

    def each(self, part: int) -> list[Record]:
        """One picture, in the record itself; the build writes it to its place."""
        draw = np.random.default_rng(part - 1 if part % 50 == 49 else part)
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9), np.uint8))
        stream = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(stream, "PNG", compress_level=1)
        said = " ".join(draw.choice(WORDS, 12))
        return [
            Record(
                id=stable_id(part), main_task_type="image-to-text", sub_task_type="caption", modality="ct",
                dataset="drawn", licence="CC0-1.0", source="numpy",
                input_img=(ImageFile("drawn.png", SIDE, SIDE, content=stream.getvalue()),),
                message=(Message("human", "<image> Describe this image."), Message("gpt", said)),
            )
        ]  # fmt: skip


def built(count: int, workers: int, send: Any) -> None:
    """Build a corpus in a process of its own; sends seconds, processor seconds, peak bytes, records kept.

    The peak is that of this process and of the largest worker times their number: what workers share of
    their libraries is counted for each, so the build held less.
    """
    folder = Path(tempfile.mkdtemp())
    steps = [{"step": "coarse", "preset": "atlas"}, {"step": "dedup"}]
    told = {"name": "b", "batch": 256, "sources": [{"step": "data:Drawn", "count": count}], "steps": steps}
    try:
        start = time.perf_counter()
        manifest = build_dataset(told, folder / "out", workers=workers, progress=False)
        seconds = time.perf_counter() - start
    finally:
        shutil.rmtree(folder)
    mine, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    busy = sum(use.ru_utime + use.ru_stime for use in (mine, others))
    peak = mine.ru_maxrss + (workers * others.ru_maxrss if workers > 1 else 0)
    send.send([seconds, busy, 1024 * peak, manifest["records"]])


def decided(count: int, _: int, send: Any) -> None:
    """Decide on notes as a build makes them, without pictures; sends seconds, the same, peak bytes, kept."""

    def notes(draw: np.random.Generator) -> Iterator[dict[str, Any]]:
        for n in range(count):
            bits = draw.bytes(256)
            image = {"pixels": bits[:16].hex(), "average": bits[16:48].hex(), "dct": bits[48:80].hex()}
            image["thumb"] = bits[80:224].hex()
            words = {"words": bits[224:232].hex(), "minhash": draw.bytes(128).hex()}
            yield {"task": "caption", "owner": "", "images": [image], "words": words, "id": f"{n:x}"}

    start = time.process_time()
    kept = sum(not verdict.code for verdict in Dedup().decide(notes(np.random.default_rng(0))))
    list(UniqueIds().decide({"id": str(n)} for n in range(count)))
    seconds = time.process_time() - start
    send.send([seconds, seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, kept])


def alone(work: Any, count: int, workers: int) -> list[float]:
    """What a piece of work sends from a process of its own."""
    mine, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(count, workers, other))
    process.start()
    other.close()
    found: list[float] = mine.recv()
    process.join()
    return found


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--decisions", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=2)
    options = parsed(parser)
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find the source of this file
    import data  # noqa: F401  and the steps of this module under its own name

    load = load_average()
    head = ["what", "records", "wall s", "CPU s", "records a CPU second", "peak MiB, all processes", "kept"]
    cells = [head]
    seconds_each: dict[int, float] = {}
    bytes_each = 0.0
    for name, work, sizes in (("build", built, options.sizes), ("decisions", decided, options.decisions)):
        before, last = 0.0, 0
        for count in sizes:
            seconds, busy, peak, kept = alone(work, count, options.workers)
            cells.append([
                name, f"{count:,}", f"{seconds:.1f}", f"{busy:.1f}", f"{count / busy:,.0f}",
                f"{peak / 2**20:,.0f}", f"{int(kept):,}",
            ])  # fmt: skip
            if name == "build":
                seconds_each[count] = busy / count
            elif before:
                bytes_each = (peak - before) / (count - last)
            before, last = peak, count
    least, most = min(seconds_each), max(seconds_each)
    growth, allowed = seconds_each[most] / seconds_each[least], math.log(most) / math.log(least)
    hours = PAPER * seconds_each[most] / 3600
    report(
        f"`unimedvl data build` of {SIDE} x {SIDE} pictures with a sentence: coarse, dedup, shards, "
        f"`--workers {options.workers} --sizes {' '.join(map(str, options.sizes))}`. The decisions hold "
        f"about {bytes_each:,.0f} bytes a record. A record of the largest build took {growth:.2f} times the "
        f"CPU seconds of one of the smallest; n log n would allow {allowed:.2f}.\n\n"
        f"On paper: at the rate of the largest build, {PAPER:,} records of this size take {hours:,.0f} hours "
        f"of one core, so {hours / 2:,.0f} hours on two and {hours:,.0f} / n on Ray with n, as long as "
        f"the disk keeps up, plus the decisions, which one process takes; these hold "
        f"{PAPER * bytes_each / 2**30:,.0f} GiB. Larger pictures cost in proportion to their pixels.",
        cells, options, load,
    )  # fmt: skip


if __name__ == "__main__":
    main()
