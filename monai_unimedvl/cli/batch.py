# SPDX-License-Identifier: Apache-2.0
"""A list of requests, done one by one: what is done is never asked again, what fails does not stop the rest.

`results.jsonl` in the folder of results is the memory: a line for each request, added when all of its files
lie there. A rerun leaves out what has a line whose key, inputs and files still agree. It names no input and
repeats no error's words, which may hold a name; those are shown to who runs the command.
"""

from __future__ import annotations

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from monai_unimedvl.atomic import lock, write
from monai_unimedvl.cli import verbs
from monai_unimedvl.cli.case import files_of
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.lists import Request, read_list
from monai_unimedvl.cli.options import RESULTS
from monai_unimedvl.cli.writing import ending_of, outputs
from monai_unimedvl.delivery.audit import Audit
from monai_unimedvl.provenance import manifest_path, sha256

# Options that do not change what comes out.
ASIDE = set("out json quiet debug model device input_list audit who given images engine workers".split())
Outcome = dict[str, Any]  # a line of results.jsonl, and "message": words for the screen alone


class Worker:
    """One model, and what it makes of one request after the other.

    Args:
        common: options of the command line.
        folder: of the results.
    """

    def __init__(self, common: Namespace, folder: Path) -> None:
        self.common, self.folder = common, folder
        self.model = verbs.Model.of(common)

    def __call__(self, request: Request) -> Outcome:
        """The line of a request; its files are written before it returns."""
        told: Outcome = {"line": request.line, "out": request.out}
        try:
            options = request.options(self.common, self.folder)
            told["inputs"] = hashes(options)
            told["key"] = key(options, request, self.model.digest)
            _, values = getattr(verbs, self.common.verb)(options, self.model)
        except Exception as error:
            if self.common.debug:
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            message = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
            return {**told, "failed": type(error).__name__, "message": message}
        files = [Path(name) for name in values["outputs"]]
        told["outputs"] = {path.relative_to(self.folder).as_posix(): sha256(path) for path in files}
        told |= {name: values[name] for name in ("answer", "stop_reason", "pixels") if name in values}
        return {**told, "synthetic": True}


def run_list(options: Namespace, audit: Audit | None) -> Result:
    """Do what is not done yet of `options.input_list`.

    Raises:
        ValueError: the list, the folder or an option does not fit; a bad input file is no such reason.
    """
    folder = Path(options.out or f"{options.verb}-results")
    options.out = None  # the ending of a folder's name says nothing of the files in it
    requests = read_list(options.input_list, options, ending_of(options))
    worker = Worker(options, folder)
    _check(options, requests, worker)
    known = read_results(folder / RESULTS)
    todo = [request for request in requests if not _done(request, known.get(request.out), worker)]
    failures: list[tuple[Request, str]] = []
    by_line = {request.line: request for request in requests}
    with tqdm(
        total=len(requests), initial=len(requests) - len(todo), unit=" request", disable=options.quiet
    ) as bar:
        for outcome in engine(options, worker, todo):
            request, message = by_line[outcome["line"]], outcome.pop("message", None)
            _add(folder / RESULTS, outcome)
            if message is not None:
                failures.append((request, message))
                bar.set_postfix_str(f"{len(failures)} failed")
            if audit is not None:
                audit.add(
                    options.verb, worker.model.digest, outcome.get("inputs", ()),
                    outcome.get("outputs", {}).values(), outcome.get("failed"),
                )  # fmt: skip
            bar.update()
    _tidy(folder / RESULTS)
    return _summary(folder, requests, len(todo), failures)


def engine(options: Namespace, worker: Worker, todo: Sequence[Request]) -> Iterator[Outcome]:
    """The outcomes, as they come: one after the other, or from several processes."""
    if options.engine == "ray":
        from monai_unimedvl.cli.cluster import on_ray

        return on_ray(options, worker, todo)
    return map(worker, todo)


def key(options: Namespace, request: Request, weights: str) -> str:
    """sha256 of all that a result depends on: words, settings, weights and the bytes of the inputs."""
    settings = {name: value for name, value in vars(options).items() if name not in ASIDE}
    settings |= {"prompt": verbs.prompt_of(options), "out": request.out, "weights": weights}
    settings["inputs"] = hashes(options)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def hashes(options: Namespace) -> list[str]:
    """sha256 of the files that a request names; one that is not there is left to the verb, which says so."""
    return [sha256(path) for path in [*options.images, *files_of(options)] if Path(path).exists()]


def read_results(path: Path) -> dict[str, Outcome]:
    """Name of a result -> its last line; a line that was cut off is as if it were not there."""
    known: dict[str, Outcome] = {}
    try:
        text = path.read_text("utf8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): choose another --out.") from error
    for line in text.splitlines():
        try:
            outcome = json.loads(line)
            known[outcome["out"]] = outcome
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return known


def _real(path: Path | str) -> str:
    """Where a path leads; itself where it leads nowhere, as links in a circle and no names at all do."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return str(path)


def _check(options: Namespace, requests: Sequence[Request], worker: Worker) -> None:
    """What is wrong whatever the files hold.

    Raises:
        ValueError: it is.
    """
    folder, name = worker.folder, Path(options.input_list).name
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, but with --input-list a folder is expected: rename it.")
    inputs = {_real(path) for request in requests for path in request.images}
    for request in requests:
        own = request.options(options, folder)
        try:
            verbs.prompt_of(own)
            paths = outputs(own)
        except ValueError as error:
            raise ValueError(f"{name}, line {request.line}: {error}") from error
        for path in paths:
            if _real(path) in inputs:
                raise ValueError(
                    f"{name}, line {request.line}: {request.out} is the input of a line, which"
                    " is never overwritten: choose another --out."
                )
    if options.verb in ("ask", "report"):
        verbs.speaker(options, worker.model.tokenizer)
    else:
        verbs.settings(options)
        _ = worker.model.network


def _done(request: Request, outcome: Outcome | None, worker: Worker) -> bool:
    """Whether a line of the results still says the truth about this request."""
    if outcome is None or "outputs" not in outcome:
        return False
    for name, digest in outcome["outputs"].items():
        path = worker.folder / name
        if not path.exists() or sha256(path) != digest:
            return False
        if path.suffix != ".json" and not manifest_path(path).is_file():
            return False
    options = request.options(worker.common, worker.folder)
    return outcome.get("key") == key(options, request, worker.model.digest)


def _add(path: Path, outcome: Outcome) -> None:
    """One line more, on the disk before this returns."""
    with _alone(path) as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # the last run was cut off in its last line
                stream.write(b"\n")
        stream.write(json.dumps(outcome, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _tidy(path: Path) -> None:
    """One line for each result, in the order of the list; those of other runs into the folder stay."""
    with _alone(path):
        lines = sorted(read_results(path).values(), key=lambda outcome: (outcome["line"], outcome["out"]))
        write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """The file of results, which no other run adds to or puts in order meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+b") as stream:
            lock(stream.fileno())
            try:
                there = os.path.samestat(os.fstat(stream.fileno()), path.stat())
            except FileNotFoundError:
                there = False
            if there:  # and not the one that somebody has just put another in the place of
                yield stream
                return


def _summary(
    folder: Path, requests: Sequence[Request], asked: int, failures: Sequence[tuple[Request, str]]
) -> Result:
    before = len(requests) - asked
    there = f" ({before} were there already)" if before else ""
    lines = [f"{len(requests) - len(failures)} of {len(requests)} done{there}: {folder / RESULTS}"]
    failures = sorted(failures, key=lambda failure: failure[0].line)
    if failures:
        lines.append(f"{len(failures)} failed; the same command tries them again:")
    lines += [f"  line {r.line}  {' '.join(r.images) or r.out}  {message}" for r, message in failures]
    values = {
        "results": str(folder / RESULTS), "done": len(requests) - len(failures), "asked": asked,
        "failures": [{"line": r.line, "inputs": list(r.images), "error": message} for r, message in failures],
    }  # fmt: skip
    return lines, values
