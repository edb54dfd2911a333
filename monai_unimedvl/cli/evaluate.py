# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate`: held-out scans, a public benchmark, a prediction file, or the pictures it names."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from monai_unimedvl.cli import measuring
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.writing import writable


def evaluate(options: Namespace) -> Result:
    """Score a model on the atlas benchmark, --out is a folder then; or a prediction file by protocols."""
    measuring.check(options)
    if options.out:
        writable(Path(options.out))  # before minutes of work, and not after them
    if options.against:
        return measuring.against(options)
    if options.pictures:
        return measuring.pictures(options)
    if options.predictions or options.explain or options.protocols or options.judge:
        from monai_unimedvl.cli.scoring import evaluate_predictions

        if not options.predictions:
            raise ValueError("protocols score a prediction file: add --predictions FILE.")
        return evaluate_predictions(options)
    if options.benchmark or options.data:
        from monai_unimedvl.cli.public import evaluate_benchmark

        if not options.benchmark:
            raise ValueError("--data holds the files of a benchmark: add --benchmark NAME.")
        return evaluate_benchmark(options)
    return measuring.measure(options)
