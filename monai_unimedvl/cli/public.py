# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate --benchmark NAME --data FOLDER`: a model on a benchmark that you have downloaded."""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

NAMES = (
    "vqa-rad", "slake", "slake-en", "slake-zh", "pathvqa", "omnimedvqa", "gmai-mmbench", "medxpertqa-mm",
    "text-to-image", "bci", "ixi-sr4", "brats23", "icg-cxr", "segmentation", "mimic-cxr", "iu-xray",
)  # fmt: skip
DRAWN = ("PSNR", "SSIM", "Dice", "HD95")


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
    from monai_unimedvl.cli.writing import writable
    from monai_unimedvl.evaluation.counting import as_json, count, count_texts, table
    from monai_unimedvl.evaluation.predictions import write_predictions
    from monai_unimedvl.evaluation.public import FILE, Drawing, ask_benchmark
    from monai_unimedvl.evaluation.public_report import FROM_WORDS, report_of, scored, write_report
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
    writable(Path(options.out) / "index.html")
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
    made = scored(made, benchmark, options.out)
    write_predictions(made.rows, Path(options.out) / FILE, made.about)
    words = [row for row in made.rows if row.truth]
    counts = count(words, seed=options.seed) if any(row.answer_type != "report" for row in words) else []
    counts += count_texts(words, seed=options.seed)
    report = report_of(made, benchmark, options.out)
    write_report(report, options.out, name=Path(options.model).name, counts=counts)
    values: dict[str, Any] = {"about": made.about}
    lines = [str(benchmark)]
    if options.limit is not None and options.limit < len(benchmark):
        lines.append(f"asked {len(made)} of them: --limit {options.limit}, seed {options.seed}")
    if counts:
        lines += ["", table(counts)]
        values["protocols"] = as_json(counts)
    if found := [row for row in report.rows if row.metric in DRAWN]:
        lines += ["", markdown(found)]
        values["rows"] = [asdict(row) for row in found]
    if any(row.drawn and row.task == FROM_WORDS for row in made.rows):
        again = f"unimedvl evaluate --predictions {options.out}/{FILE} --pictures {options.out}"
        lines += ["", f"Drawings from words are compared as sets: {again} --encoder KIND=PATH"]
    names = sorted(path.name for path in Path(options.out).iterdir() if path.is_file())
    lines += ["", f"wrote {options.out}: {', '.join(names)}"]
    return lines, values
