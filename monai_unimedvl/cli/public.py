# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate --benchmark NAME --data FOLDER`: a model on a benchmark that you have downloaded."""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result
    from monai_unimedvl.evaluation.predictions import Predictions
    from monai_unimedvl.evaluation.readers import Benchmark

NAMES = (
    "vqa-rad", "slake", "slake-en", "slake-zh", "pathvqa", "omnimedvqa", "gmai-mmbench", "medxpertqa-mm",
    "text-to-image", "bci", "ixi-sr4", "brats23", "icg-cxr", "segmentation", "mimic-cxr", "iu-xray",
)  # fmt: skip


def add_options(verb: argparse.ArgumentParser) -> None:
    """The options of `evaluate` that ask a public benchmark."""
    group = verb.add_argument_group(
        "a public benchmark", "from files you have downloaded; needs --data and --out"
    )
    group.add_argument("--benchmark", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    group.add_argument("--data", metavar="FOLDER", help="its files as their publisher lays them out")
    group.add_argument("--section", help="of the benchmark (default: its first, mostly test)")
    group.add_argument("--partial", action="store_true", help="ask what is there though files are missing")
    group.add_argument(
        "--prompt-of", metavar="PROTOCOL", default="strict-v1",
        help="protocol whose words are put behind each question (default: strict-v1)",
    )  # fmt: skip


def evaluate_benchmark(options: Namespace) -> Result:
    """Ask a benchmark, write predictions.parquet, and score it: words by protocols, drawings by images."""
    from monai_unimedvl import bundle as bundles
    from monai_unimedvl.cli.measuring import on_ray
    from monai_unimedvl.cli.reading import device
    from monai_unimedvl.evaluation.counting import as_json, count, count_texts, table
    from monai_unimedvl.evaluation.pictures import rows_of
    from monai_unimedvl.evaluation.public import Drawing, ask_benchmark
    from monai_unimedvl.evaluation.readers import read_benchmark
    from monai_unimedvl.evaluation.tables import markdown

    if not options.data or not options.out:
        raise ValueError(
            "--benchmark needs its files and a folder to write to: add --data FOLDER --out FOLDER."
        )
    if Path(options.out).is_file():
        raise ValueError(
            f"--out {options.out} is a file, expected a folder for the predictions: name another."
        )
    benchmark = read_benchmark(
        options.benchmark, options.data, section=options.section, partial=options.partial
    )
    network, tokenizer = bundles.load(options.model, device=device(options.device))
    made = ask_benchmark(
        benchmark, network, tokenizer, out=options.out, protocol=options.prompt_of, limit=options.limit,
        drawing=Drawing(options.steps, 1.0) if options.steps else None, seed=options.seed,
        weights=bundles.digest(options.model), progress=not options.quiet,
        engine=on_ray(options) if options.engine == "ray" else None,
    )  # fmt: skip
    words = [row for row in made.rows if row.truth]
    values: dict[str, Any] = {"about": made.about}
    lines = [str(benchmark)]
    if options.limit is not None and options.limit < len(benchmark):
        lines.append(f"asked {len(made)} of them: --limit {options.limit}, seed {options.seed}")
    counts = count(words, seed=options.seed) if any(row.answer_type != "report" for row in words) else []
    counts += count_texts(words, seed=options.seed)
    if counts:
        lines += ["", table(counts)]
        values["protocols"] = as_json(counts)
    if any(row.drawn for row in made.rows):
        found = rows_of(_scored(made, options.out, benchmark), seed=options.seed)
        lines += ["", markdown(found)]
        values["rows"] = [asdict(row) for row in found]
    lines += ["", f"wrote {options.out}/predictions.parquet"]
    return lines, values


def _scored(made: Predictions, out: str, benchmark: Benchmark) -> Predictions:
    """The drawings with their scores; masks of several legends one legend after the other."""
    from monai_unimedvl.evaluation.pictures import score_pictures

    legends = {item.id: dict(item.legend) for item in benchmark.items if item.legend}
    rows = []
    for legend in {str(one): one for one in (legends.get(row.id) for row in made.rows)}.values():
        some = [row for row in made.rows if row.drawn and legends.get(row.id) == legend]
        if some:
            rows += score_pictures(replace(made, rows=some), out, legend=legend).rows
    return replace(made, rows=rows)
