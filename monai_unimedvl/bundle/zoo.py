# SPDX-License-Identifier: Apache-2.0
"""What the model zoo looks at beside metadata, configs and weights: large files, versions, logging."""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import logging
import logging.handlers
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

from monai.bundle import ConfigParser

from monai_unimedvl.bundle.findings import Finding, Lines

HASHES = ("sha256", "sha512", "sha1", "md5")  # that MONAI's download knows


def large_files(folder: Path) -> Iterator[Finding]:
    """What `large_files.*` lists is there, with its hash; the zoo fetches what is missing."""
    for file in sorted(folder.glob("large_files.*")):
        try:
            listed = ConfigParser.load_config_file(str(file))["large_files"]
            wanted = [
                (str(each["path"]), each.get("hash_val"), str(each.get("hash_type") or "sha256").lower())
                for each in listed
            ]
        except Exception as error:  # of YAML, of JSON, of another form
            yield Finding(
                file.name, 0, f"no list of files: {' '.join(str(error).split())[:100]}",
                "write `large_files:` with path, url, hash_val and hash_type of each",
            )  # fmt: skip
            continue
        text = file.read_text("utf8")
        for path, value, kind in wanted:
            at = 1 + text[: text.find(path)].count("\n")
            if not (folder / path).is_file():
                yield Finding(
                    file.name, at, f"{path} is not there",
                    "run `python -m monai.bundle download_large_files` in the bundle's folder",
                )  # fmt: skip
            elif value and kind not in HASHES:
                yield Finding(file.name, at, f"{path} has a hash_type {kind!r}", f"use {' or '.join(HASHES)}")
            elif value and _hash(folder / path, kind) != value:
                yield Finding(file.name, at, f"{path} has another {kind}", "fetch it again")


def published(folder: Path) -> Iterator[Finding]:
    """The version is new, where the zoo's list of what is published lies beside the bundle."""
    file, about = folder.parent / "model_info.json", folder / "configs" / "metadata.json"
    try:
        version = json.loads(about.read_text("utf8"))["version"]
        taken = f"{folder.resolve().name}_v{version}" in json.loads(file.read_text("utf8"))
    except (OSError, ValueError, KeyError, TypeError):  # no list; the metadata has its own checks
        return
    if taken:
        line = Lines(about.read_text("utf8"))["version"]
        yield Finding(
            "configs/metadata.json", line, f"version {version} is in {file.name}, so it is published",
            "give a new one",
        )  # fmt: skip


def logging_file(folder: Path) -> Iterator[Finding]:
    """`logging.conf` names Python's own handlers and plain values: MONAI applies it before anything else."""
    file = folder / "configs" / "logging.conf"
    if not file.is_file():
        return
    name, text = "configs/logging.conf", file.read_text("utf8", "replace")
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        yield Finding(
            name, getattr(error, "lineno", 0), "it cannot be read", "write it as Python's logging asks"
        )
        return
    for section in parser.sections():
        for key, value in parser.items(section):
            if key == "class":
                known = locate(f"logging.{value.removeprefix('logging.')}")
                good = isinstance(known, type) and issubclass(known, logging.Handler | logging.Formatter)
            elif key in ("args", "kwargs"):
                good = _literal(value)
            else:
                continue
            if not good:
                line = 1 + text[: text.find(value, text.find(f"[{section}]"))].count("\n")
                yield Finding(
                    name, line, f"{key} of {section} is {value!r}",
                    "name a handler of Python's own, and plain values, sys.stdout or sys.stderr",
                )  # fmt: skip


def _hash(file: Path, kind: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def _literal(text: str) -> bool:
    try:
        ast.literal_eval(re.sub(r"sys\.std(out|err)", "None", text))
        return True
    except (ValueError, SyntaxError):
        return False
