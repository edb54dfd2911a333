# SPDX-License-Identifier: Apache-2.0
"""The nano in 8 and 4 bits on the questions of the atlas: which greedy answers stay, and how many are right.

All sides read the same prompts in the same batches. How fast quantised layers are is in decode.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from _timing import load_average, parsed, report

from monai_unimedvl import load
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.inferers import TextInferer
from monai_unimedvl.weights import ANSWERING

KINDS = (None, "int8", "int4", "nf4")
BATCH = 32


def answers(items: list[dict[str, Any]], kind: str | None) -> tuple[list[str], int, float]:
    """What is said, the bytes that are held, and CPU seconds."""
    network, tokenizer = load("unimedvl_nano", parts=ANSWERING, quantize=kind)
    infer = TextInferer(tokenizer, max_new_tokens=12)
    begin, said = time.process_time(), []
    for at in range(0, len(items), BATCH):
        said += infer([list(item["turns"][0].parts) for item in items[at : at + BATCH]], network)
    held = sum(x.nbytes for x in (*network.parameters(), *network.buffers()))
    return [str(answer) for answer in said], held, time.process_time() - begin


def main() -> None:
    """The table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1500, help="questions at most, spread over all")
    options = parsed(parser)
    load_before = load_average()
    sets = [
        AtlasDataset(section=section, tasks=["vqa"], cache_rate=0, progress=False)
        for section in ("test", "test_subject")
    ]
    places = [(data, n) for data in sets for n in range(len(data))]
    chosen = np.linspace(0, len(places) - 1, min(options.limit, len(places))).round().astype(int)
    items = [places[i][0][places[i][1]] for i in chosen]
    cells = [["weights", "held", "answers equal to float32", "right", "CPU"]]
    whole: list[str] = []
    for kind in KINDS:
        said, held, seconds = answers(items, kind)
        whole = whole or said
        equal = np.mean([a == b for a, b in zip(said, whole, strict=True)])
        right = np.mean([a == item["truth"] for a, item in zip(said, items, strict=True)])
        cells.append(
            [kind or "float32", f"{held / 1e6:.1f} MB", f"{100 * equal:.1f} %", f"{100 * right:.1f} %",
             f"{seconds:.0f} s"]
        )  # fmt: skip
        print(cells[-1], flush=True)
    about = f"{len(items)} questions of the sections test and test_subject, one image each, greedy."
    report(about, cells, options, load_before)


if __name__ == "__main__":
    main()
