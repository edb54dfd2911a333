# SPDX-License-Identifier: Apache-2.0
"""Whether a bundle is whole: the model zoo's checks and ours, without network, with the line and the mend.

First everything that can be read without running it: files, JSON, metadata against the schema, what configs
name, weights. Only if that is in order, MONAI's own checks that build what the configs say.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Callable, Iterator
from importlib import metadata as installed
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from monai.utils import optional_import, version_leq

from monai_unimedvl import __version__
from monai_unimedvl.bundle import places
from monai_unimedvl.bundle.findings import Finding, Lines
from monai_unimedvl.bundle.zoo import large_files, logging_file, published
from monai_unimedvl.weights.checkpoint import NAME, read_checkpoint

SCHEMA = "meta_schema_20240725.json"
NEEDED = ("LICENSE", "configs/metadata.json", "configs/inference.json", f"models/{NAME}", "docs/README.md")
LARGEST = 25_000_000  # bytes of a file in the model zoo
PACKAGES = ("monai", "monai_unimedvl", "torch", "ignite", "pytorch_lightning")  # that configs may name
NAMES = {
    "True",
    "False",
    "None",
    "torch",
    "monai",
    "min",
    "max",
    "len",
    "int",
    "float",
    "str",
    "list",
    "range",
}
CODE = (".py", ".pyc", ".so", ".dll", ".sh")
PICKLES = (".pkl", ".pickle", ".pth", ".ckpt", ".bin", ".joblib", ".npy", ".npz")
REFERENCE = re.compile(r"[@%]+[\w#:]+")
SECTIONS = (
    "Model Overview", "Data", "Training configuration", "Performance", "MONAI Bundle Commands", "Limitations",
    "Citation", "References", "License",
)  # fmt: skip


def verify(path: str | Path, *, run: bool = True, export: bool = False) -> list[Finding]:
    """Everything that is wrong with a bundle; nothing when it is in order.

    Args:
        path: a bundle's folder.
        run: also build the network and check its properties, input and output: this runs what the configs
            say, as far as it passed the checks before.
        export: also export to TorchScript, as the zoo's full check does.

    Raises:
        ValueError: no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder, expected a bundle: copy or download one first.")
    readers = (_files, large_files, _metadata, published, _configs, logging_file, _weights, _papers)
    found = [finding for read in readers for finding in read(folder)]
    if not found and run and not _lacks_weights(folder):
        found += _running(folder, export)
    return found


def _lacks_weights(folder: Path) -> bool:
    """A bundle whose weights are fetched later, and were not: nothing of it can be built."""
    content = json.loads((folder / "configs" / "metadata.json").read_text("utf8"))
    return bool(content.get("large_weights")) and not list((folder / "models").glob("*.safetensors"))


def _files(folder: Path) -> Iterator[Finding]:
    for name in NEEDED:
        if not (folder / name).is_file():
            yield Finding(
                name, 0, "the file is missing", f"take it from `unimedvl bundle copy {places.DEFAULT}`"
            )
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink():
            yield Finding(name, 0, "a link came, expected files", "put the file itself there")
        elif file.suffix.lower() in CODE:
            yield Finding(name, 0, "a bundle holds no code", "move it into a package that configs can name")
        elif file.suffix.lower() in PICKLES or (file.suffix == ".pt" and file.name != NAME):
            yield Finding(name, 0, "the file may hold a pickle, which can run code", "remove or convert it")
        elif file.is_file() and file.stat().st_size > LARGEST:
            size = file.stat().st_size / 1e6
            yield Finding(
                name, 0, f"{size:.1f} MB came, the zoo takes {LARGEST / 1e6:g} MB", "save it smaller"
            )


def _metadata(folder: Path) -> Iterator[Finding]:
    """The metadata against the schema, its changelog, and the versions that are installed."""
    file = folder / "configs" / "metadata.json"
    if not file.is_file():
        return
    name, text = "configs/metadata.json", file.read_text("utf8", "replace")
    content, broken = _parsed(name, text)
    yield from broken
    if not isinstance(content, dict):
        return
    where = Lines(text)
    if not str(content.get("schema", "")).endswith(SCHEMA):
        yield Finding(
            name, where["schema"], f"schema is {content.get('schema')!r}, expected one that ends in {SCHEMA}",
            f"set it to https://project-monai.github.io/schema/{SCHEMA} and mend what then does not fit",
        )  # fmt: skip
        return
    jsonschema, has = optional_import("jsonschema")
    if not has:
        yield Finding(name, 0, "jsonschema is not installed", "run `pip install 'monai-unimedvl[bundle]'`")
        return
    schema = json.loads((places.BUNDLES / SCHEMA).read_text("utf8"))
    for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(content), key=lambda e: list(e.path)):
        while error.context:  # of several alternatives: what is wrong deepest inside
            error = max(error.context, key=lambda e: len(e.absolute_path))
        keys = [str(key) for key in error.absolute_path]
        mend = "add it" if error.validator == "required" else f"give what the schema asks for ({SCHEMA})"
        said = error.message if len(error.message) < 120 else f"{error.message[:117]}..."
        yield Finding(name, where[".".join(keys)], f"{'.'.join(keys) or 'the file'}: {said}", mend)
    version, changes = str(content.get("version")), content.get("changelog")
    if not isinstance(changes, dict) or version not in changes:
        line = where["changelog"] or where["version"]
        yield Finding(
            name, line, f"changelog has no entry {version!r}, the version", "write what changed in it"
        )
    needed = {"monai": content.get("monai_version"), "torch": content.get("pytorch_version")}
    needed |= {"numpy": content.get("numpy_version"), **(content.get("required_packages_version") or {})}
    for package, wanted in needed.items():
        yield from _older(name, where, package, str(wanted))


def _older(name: str, where: Lines, package: str, wanted: str) -> Iterator[Finding]:
    """A package that is missing, or older than the bundle was made with."""
    line = where[f"{package.replace('torch', 'pytorch')}_version"] or where[package]
    if not re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.dev|\.post)\d+)?", wanted):
        yield Finding(name, line, f"{package} has version {wanted!r}, expected one like 1.2.3", "mend it")
        return
    try:
        here = __version__ if package == "monai-unimedvl" else installed.version(package)
        if version_leq(wanted, here):
            return
        problem = f"the bundle was made with {package} {wanted}, here is {here}"
    except installed.PackageNotFoundError:
        problem = f"the bundle needs {package} {wanted}, which is not installed"
    yield Finding(name, line, problem, f"run `pip install {package}=={wanted}`")


def _configs(folder: Path) -> Iterator[Finding]:
    """Every config: JSON, naming only what there is in known packages, with plain expressions."""
    for file in sorted((folder / "configs").glob("*.json")):
        if file.name == "metadata.json":
            continue
        name, text = f"configs/{file.name}", file.read_text("utf8", "replace")
        content, broken = _parsed(name, text)
        yield from broken
        where = Lines(text)
        for key, value in _leaves(content):
            if key.split(".")[-1] == "_target_":
                wrong = _unknown(str(value))
                mend = f"name something of {', '.join(PACKAGES)} in full"
            else:
                wrong = _expression(value) if isinstance(value, str) and value.startswith("$") else ""
                mend = "write it with references, attributes, calls and arithmetic only"
            if wrong:
                yield Finding(name, where[key], f"{key}: {wrong}", mend)


def _unknown(target: str) -> str:
    if target.split(".")[0] not in PACKAGES:
        return f"{target!r} is of no known package"
    return "" if locate(target) is not None else f"{target!r} does not exist"


def _expression(text: str) -> str:
    """Why a `$` expression is not plain: names of the machine, of Python's insides, or no Python at all."""
    body = text[1:]
    try:
        tree = ast.parse(REFERENCE.sub("None", body))
    except SyntaxError:
        return f"{text[:60]!r} is no Python"
    bound = {arg.arg for node in ast.walk(tree) if isinstance(node, ast.Lambda) for arg in node.args.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module.split(".")[0] not in PACKAGES:
                return f"it imports {module or 'a neighbour'}"
        elif isinstance(node, ast.Name) and node.id not in NAMES | bound:
            return f"it uses {node.id!r}"
        elif isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in ("load", "hub")):
            return f"it uses {node.attr!r}"
    return ""


def _weights(folder: Path) -> Iterator[Finding]:
    """model.pt: tensors by name that fit config.json."""
    from monai_unimedvl import weights

    file = folder / "models" / NAME
    if not file.is_file():
        return
    try:
        if not _lacks_weights(folder):
            read_checkpoint(file)
            weights.load(file.parent)
    except ValueError as error:  # of JSON too: said already
        if "configs/metadata.json" not in str(error) and not isinstance(error, json.JSONDecodeError):
            said, _, mend = str(error).rstrip(".").rpartition(": ")
            yield Finding(f"models/{NAME}", 0, said or mend, mend if said else "copy the models folder again")
    except OSError:
        return


def _papers(folder: Path) -> Iterator[Finding]:
    """The sections of the zoo's README."""
    file = folder / "docs" / "README.md"
    text = file.read_text("utf8", "replace") if file.is_file() else ""
    for section in SECTIONS if text else ():
        if not re.search(rf"^#+ {section}", text, re.M):
            yield Finding("docs/README.md", 0, f"there is no section {section!r}", "add it")


def _running(folder: Path, export: bool) -> Iterator[Finding]:
    """MONAI's own checks: properties, input and output, TorchScript."""
    from tempfile import TemporaryDirectory

    from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out

    config, meta = (str(folder / "configs" / name) for name in ("inference.json", "metadata.json"))

    def properties() -> None:
        made = ConfigWorkflow(config, workflow_type="inference", logging_file=False)
        made.initialize()
        if missing := made.check_properties():
            raise ValueError(f"MONAI finds no {', '.join(missing)}")

    def exported() -> None:
        if (folder / "models" / "model.ts").is_file():  # as it came
            torch.jit.load(folder / "models" / "model.ts", map_location="cpu")
        with TemporaryDirectory() as aside:
            ckpt_export(
                net_id="network_def", filepath=f"{aside}/model.ts", config_file=config, meta_file=meta,
                ckpt_file=str(folder / "models" / NAME), bundle_root=str(folder),
            )  # fmt: skip

    checks: list[tuple[str, Callable[[], Any]]] = [
        ("properties", properties),
        ("input and output", lambda: verify_net_in_out("network_def", meta, config, bundle_root=str(folder))),
        *([("TorchScript", exported)] if export else []),
    ]
    for what, check in checks:
        try:
            logging.disable(logging.INFO)  # MONAI tells what it was called with
            check()
        except Exception as error:  # MONAI wraps what a component raises
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            said = " ".join(str(root).split())[:200] or type(root).__name__
            yield Finding("configs/inference.json", 0, f"{what}: {said}", "mend the config or the metadata")
        finally:
            logging.disable(logging.NOTSET)


def _parsed(name: str, text: str) -> tuple[Any, list[Finding]]:
    try:
        return json.loads(text), []
    except json.JSONDecodeError as error:
        return None, [
            Finding(name, error.lineno, f"no JSON: {error.msg}", f"mend it at column {error.colno}")
        ]


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that holds nothing else."""
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for inner, value in pairs:
        yield from _leaves(value, f"{key}.{inner}" if key else str(inner))
    if not isinstance(content, dict | list):
        yield key, content
