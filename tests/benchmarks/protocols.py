# SPDX-License-Identifier: Apache-2.0
"""Time and memory of 100,000 predictions by every protocol: `python tests/benchmarks/protocols.py`."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from monai_unimedvl.evaluation.counting import count, table
from monai_unimedvl.evaluation.predictions import Prediction, read_predictions, write_predictions

WORDS = (
    "left right upper lower lobe lung liver heart mass nodule pneumonia effusion fracture normal abnormal "
    "no yes image shows there is a small the with of opacity in T2 MRI CT"
).split()


def make(number: int, seed: int = 0) -> list[Prediction]:
    """Rows as those of a large run: each text its own, a third closed, a third open, a third choices."""
    chance = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))

    rows = []
    for place in range(number):
        kind = ("closed", "open", "choice")[place % 3]
        options = tuple(text(4) for _ in range(4)) if kind == "choice" else ()
        truth = {"closed": chance.choice(["yes", "no"]), "choice": chance.choice("ABCD")}.get(kind) or text(4)
        said = chance.choice([truth, text(12), "Yes, it is.", "", f"The answer is {truth}."])
        rows.append(
            Prediction(
                str(place), truth=truth, answer=said, answer_type=kind, options=options, question=text(10),
                benchmark=chance.choice(["vqa-rad", "slake", "pathvqa"]), prompt=text(20),
            )
        )  # fmt: skip
    return rows


def main() -> None:
    """Print seconds of reading and of scoring, and the most memory that was held."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = write_predictions(make(number), Path(folder) / "p.parquet")
        start, busy = time.perf_counter(), time.process_time()
        rows = read_predictions(path).rows
        read = time.perf_counter() - start
        counts = count(rows)
        scored, busy = time.perf_counter() - start - read, time.process_time() - busy
    print(table(counts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = f"read in {read:.1f} s, scored in {scored:.1f} s ({busy:.1f} s of CPU in both)"
    print(f"\n{number} rows: {spent}, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
