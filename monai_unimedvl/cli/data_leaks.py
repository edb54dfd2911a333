# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data leaks shards/`: what the splits share, and how near their pictures come."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result


def add(parser: ArgumentParser) -> None:
    """The options of `unimedvl data leaks`."""
    parser.epilog = (
        "Example:\n  unimedvl data leaks corpus\n\n"
        "Exit code 2 where a patient, study or picture is in two splits."
    )
    parser.add_argument("records", nargs="+", help=".jsonl, .parquet or a folder of shards, with splits")
    parser.add_argument("--root", default="", metavar="FOLDER", help="of the images of records")


def run(options: Namespace) -> Result:
    """The report."""
    from monai_unimedvl.data.files import read_records
    from monai_unimedvl.data.leaks import leak_report

    first = Path(options.records[0])
    root = options.root or (first if first.is_dir() else first.parent)
    report = leak_report((item for path in options.records for item in read_records(path)), root)
    return report.lines(), {**report.to_json(), "ok": report.clean}
