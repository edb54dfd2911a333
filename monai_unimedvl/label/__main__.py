# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_unimedvl.label --app DIR --studies STUDIES`: MONAI Label's server, on loopback."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_unimedvl.label.door import ORIGINS, VARIABLE
from monai_unimedvl.label.guard import protect
from monai_unimedvl.label.quiet import VARIABLE as VERBOSE
from monai_unimedvl.label.quiet import hush
from monai_unimedvl.serve.keys import read_key

LOOPBACK = ("127.0.0.1", "localhost", "::1")
READ = ["*.nii.gz", "*.nii", "*.nrrd", "*.dcm", "*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff"]


def parser() -> argparse.ArgumentParser:
    """The options."""
    words = argparse.ArgumentParser(
        prog="python -m monai_unimedvl.label", description="Serve a MONAI Label app.",
        epilog="Example:\n  unimedvl label-app myapp\n"
        "  python -m monai_unimedvl.label --app myapp --studies scans --conf modality mri",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    words.add_argument("--app", required=True, metavar="DIR", help="what `unimedvl label-app` wrote; any app")
    words.add_argument(
        "--studies", required=True, metavar="FOLDER|URL",
        help="images, made if missing; or a DICOMweb service such as http://127.0.0.1:8042/dicom-web",
    )  # fmt: skip
    words.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    words.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    words.add_argument("--conf", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                       help="a setting of the app: model, modality, question, labels")  # fmt: skip
    words.add_argument("--key-file", metavar="FILE", help="a file with the key that requests must have")
    words.add_argument(
        "--open", action="store_true", help="beyond loopback without a key: somebody else checks"
    )
    words.add_argument("--filter", metavar="NAME=VALUE", action="append", default=[],
                       help="DICOMweb: which series, such as Modality=MR (default: Modality=CT)")  # fmt: skip
    words.add_argument("--origin", action="append", default=[], metavar="URL",
                       help="of web pages that may ask too, such as https://viewer.hospital")  # fmt: skip
    words.add_argument("--ssl-keyfile", metavar="FILE", help="of TLS")
    words.add_argument("--ssl-certfile", metavar="FILE", help="of TLS")
    words.add_argument(
        "--verbose", action="store_true", help="MONAI Label's own log too; it names files and UIDs"
    )
    return words


def prepare(options: argparse.Namespace) -> list[str]:
    """Set the environment, which tasks in the background inherit; returns MONAI Label's own arguments.

    Raises:
        ValueError: no such app or key, or an open door.
    """
    if not (Path(options.app) / "main.py").is_file():
        raise ValueError(
            f"--app {options.app} has no main.py, expected an app: run `unimedvl label-app DIR`."
        )
    if options.host not in LOOPBACK and not options.key_file and not options.open:
        raise ValueError(
            f"--host {options.host} can be reached from elsewhere, expected a key for that: add --key-file"
            " FILE, or --open where a proxy checks who asks."
        )
    if options.key_file:
        os.environ[VARIABLE] = digest_of(Path(options.key_file))
    os.environ[ORIGINS] = json.dumps(options.origin)
    if options.verbose:
        os.environ[VERBOSE] = "1"
    usual = {
        "MONAI_LABEL_TRACKING_ENABLED": "false",  # MLflow is not installed
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # a process after every request for a next sample
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(READ),
        "MONAI_ZOO_SOURCE": "local",  # a bundle app takes bundles from its folder, not from the network
        "HF_HUB_OFFLINE": "1",
    }
    if options.filter:
        pairs = [pair.partition("=") for pair in options.filter]
        if any(not value for _, _, value in pairs):
            raise ValueError(f"--filter {options.filter} came, expected NAME=VALUE, such as Modality=MR.")
        usual["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] = json.dumps({name: value for name, _, value in pairs})
    for name, value in usual.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PYTHONPATH", "")  # MONAI Label counts on it
    words = ["start_server", "--app", options.app, "--studies", options.studies, "--host", options.host,
             "--port", str(options.port), "--uvicorn_app", "monai_unimedvl.label.served_app:app"]  # fmt: skip
    for name in ("ssl_keyfile", "ssl_certfile"):
        if getattr(options, name):
            words += [f"--{name}", getattr(options, name)]
    return [*words, *(word for pair in options.conf for word in ("--conf", *pair))]


def digest_of(file: Path) -> str:
    """sha256 of the key in a file.

    Raises:
        ValueError: see `serve.keys`.
    """
    return hashlib.sha256(read_key(file, "--key-file").encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until it is stopped; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        words = prepare(options)
        protect()
    except ValueError as error:
        logging.getLogger("monai_unimedvl.label").error("%s", error)
        return 2
    from monailabel.main import Main

    hush()
    sys.argv = ["monailabel", *words]
    Main(loglevel=logging.INFO if options.verbose else logging.WARNING).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
