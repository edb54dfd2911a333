# SPDX-License-Identifier: Apache-2.0
"""`unimedvl bundle ...`: list, copy, pack, verify, download, export; and what a release needs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unimedvl.cli.options import value

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

# verb -> what it takes and does, in the order of the help
WHAT = {
    "list": "the bundles that came with the package",
    "copy": "NAME FOLDER: a whole bundle, with the trained weights, to use and change",
    "pack": "NAME|FOLDER [ZIP|FOLDER]: the zip that `download` and MONAI read; always the same bytes",
    "verify": "FOLDER: the model zoo's checks, without network; each finding with its line and what to do",
    "download": "SOURCE [FOLDER]: from a zip, GitHub, the Hub or the zoo, checked before it is put there",
    "export": "RUN FOLDER: a checkpoint, LoRA adapters or weights as a bundle in the frame of --base; "
    "or BUNDLE FILE.onnx: its network_def for ONNX runtimes",
    "release": "FOLDER: zips of all shipped bundles and the zoo's list, model_info.json",
    "document": "REPORT [NAME]: fill the scores of a saved report into the papers of all bundles it is about",
}


def add_options(verb: Any) -> None:
    """The words of `unimedvl bundle`."""
    verb.description = "\n".join(["What it does:", *(f"  {word:9} {about}" for word, about in WHAT.items())])
    verb.add_argument("what", choices=list(WHAT), metavar="WHAT", help=", ".join(WHAT))
    verb.add_argument("name", nargs="?", metavar="FROM", help="a name, folder, source or run; see above")
    verb.add_argument("folder", nargs="?", metavar="TO", help="where to; see above")
    verb.add_argument("--sha256", help="download: the hash that the zip must have")
    verb.add_argument("--base", default="unimedvl_nano", help="export: the bundle that the run began with")
    verb.add_argument("--about", default="", help="export: a sentence for card and changelog")
    verb.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE",
        help="export to ONNX: settings of the bundle, such as instruction, prompt, seed, steps",
    )  # fmt: skip
    verb.add_argument(
        "--size", nargs=2, type=int, metavar=("ROWS", "COLUMNS"), help="export to ONNX: of the pictures"
    )
    verb.add_argument("--base-url", default="", help="release: address under which the zips will lie")
    verb.add_argument(
        "--marker", default="scores", help="document: of the place to fill (default: %(default)s)"
    )
    verb.add_argument("--full", action="store_true", help="verify: also export to TorchScript")
    verb.add_argument("--no-run", action="store_true", help="verify: only read, build nothing of it")


def bundle(options: Namespace) -> Result:
    """One of `WHAT`."""
    return _VERBS[options.what](options)


def _list(options: Namespace) -> Result:
    from monai_unimedvl import bundle as bundles

    about = {name: bundles.metadata(name) for name in bundles.available()}
    lines = [f"{name} {content['version']}: {content['task']}" for name, content in about.items()]
    return lines or ["no bundle is shipped here"], {"bundles": list(about)}


def _copy(options: Namespace) -> Result:
    from monai_unimedvl import bundle as bundles

    path = bundles.copy(
        *_two(options, "a bundle's name and a new folder", "copy unimedvl_nano unimedvl_nano")
    )
    return [f"copied {options.name} to {path}"], {"outputs": [str(path)]}


def _pack(options: Namespace) -> Result:
    from monai_unimedvl import bundle as bundles

    path = bundles.pack(_one(options, "unimedvl bundle pack unimedvl_nano"), options.folder or options.out)
    return [f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", f"sha256 {_sha(path)}"], {
        "outputs": [str(path)],
        "sha256": _sha(path),
    }


def _verify(options: Namespace) -> Result:
    from monai_unimedvl.bundle.checks import verify

    folder = _one(options, "unimedvl bundle verify my_bundle")
    found = verify(folder, run=not options.no_run, export=options.full)
    lines = [str(finding) for finding in found] or [f"{Path(folder).name} is in order"]
    return lines, {"ok": not found, "findings": [vars(finding) for finding in found]}


def _download(options: Namespace) -> Result:
    from monai_unimedvl.bundle.fetching import download

    source = _one(options, "unimedvl bundle download unimedvl_nano_v0.1.0.zip")
    path, found = download(source, options.folder or options.out or ".", sha256=options.sha256)
    checked = "as expected" if options.sha256 else "not compared: give --sha256 to be sure who it is from"
    return [f"put {path} there", f"sha256 {found} ({checked})"], {"outputs": [str(path)], "sha256": found}


def _export(options: Namespace) -> Result:
    from monai_unimedvl.bundle.exporting import export

    run, folder = _two(options, "a run and a new folder", "export runs/checkpoints/best.ckpt my_bundle")
    if folder.endswith(".onnx"):
        return _onnx(run, folder, options)
    if options.set or options.size:
        raise ValueError("--set and --size are for export to ONNX: let the file end in .onnx, or drop them.")
    path = export(run, folder, base=options.base, about=options.about)
    return [f"wrote {path}; its papers have no scores yet"], {"outputs": [str(path)]}


def _onnx(name: str, file: str, options: Namespace) -> Result:
    from monai_unimedvl.bundle.onnx import export_onnx

    settings = {}
    for text in options.set:
        key, equals, said = text.partition("=")
        if not equals:
            raise ValueError(
                f"--set got {text!r}, expected NAME=VALUE: write it so, in quotes if it has blanks."
            )
        settings[key] = value(said)
    path, worst = export_onnx(name, file, size=options.size, settings=settings)
    checked = "not compared: onnxruntime is not installed" if worst is None else f"{worst:.1g}"
    wrote = f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)"
    facts = {"outputs": [str(path)], "largest_difference": worst}
    return [wrote, f"largest difference from Python: {checked}"], facts


def _release(options: Namespace) -> Result:
    from monai_unimedvl import bundle as bundles

    written = bundles.release(_one(options, "unimedvl bundle release dist/bundles"), base=options.base_url)
    lines = [f"wrote {path}" for path in written]
    if not options.base_url:
        lines.append("model_info.json has no addresses: nothing is published; give --base-url once it is.")
    return lines, {"outputs": [str(path) for path in written]}


def _document(options: Namespace) -> Result:
    from monai_unimedvl import bundle as bundles

    report = _one(options, "unimedvl bundle document evaluation")
    path = bundles.document(report, options.folder or bundles.DEFAULT, options.marker)
    return [f"filled {path} and the papers of every bundle with these weights"], {"outputs": [str(path)]}


def _one(options: Namespace, example: str) -> str:
    if not options.name:
        raise ValueError(f"{options.what} needs a word more, as in `{example}`.")
    return str(options.name)


def _two(options: Namespace, what: str, example: str) -> tuple[str, str]:
    to = options.folder or options.out
    if not options.name or not to:
        raise ValueError(f"{options.what} needs {what}: unimedvl bundle {example}.")
    return str(options.name), str(to)


def _sha(path: Path) -> str:
    from monai_unimedvl.provenance import sha256

    return sha256(path)


_VERBS: dict[str, Callable[[Namespace], Result]] = {
    "list": _list, "copy": _copy, "pack": _pack, "verify": _verify, "download": _download, "export": _export,
    "release": _release, "document": _document,
}  # fmt: skip
