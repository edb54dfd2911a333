# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data STEP ...`: every step of the table as a command, its options taken from the step's fields.

    unimedvl data ingest dicom FOLDER --out CORPUS       a source: CORPUS/records.jsonl and its images
    unimedvl data coarse RECORDS --out KEPT.jsonl        any other: records in, records out, rejects beside

Only the standard library is imported here: a step's module is loaded when its own help or work is asked for.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unimedvl.cli import options as o
from monai_unimedvl.data.step import STEPS

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result
    from monai_unimedvl.data.step import Item, Step, Tally

# Commands that are no step: name -> (a line about it, module with `add(parser)` and `run(options)`).
COMMANDS: dict[str, tuple[str, str]] = {
    "fetch-atlas": ("fetch the public scans that the model was trained on", "monai_unimedvl.cli.data_fetch"),
    "build": ("sources and steps of one YAML -> shards with their card", "monai_unimedvl.cli.data_build"),
    "prints": ("fingerprints of a benchmark, for decontaminate", "monai_unimedvl.cli.data_prints"),
    "review": ("a form for expert readers, and what they said", "monai_unimedvl.cli.data_review"),
    "leaks": ("what the splits of a corpus share, and how near they come", "monai_unimedvl.cli.data_leaks"),
}


class Lazy(o.Verb):
    """A parser that asks for its options when it is first used, so that `--help` of others stays quick."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        """As argparse."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)


def add_options(verbs: Any) -> None:
    """The verb `data` and the commands below it."""
    about = "turn scans, labels and reports into a corpus, step by step; fetch the public scans"
    verb = verbs.add_parser(
        "data", help=about, description=f"{about[0].upper()}{about[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example:\n  unimedvl data ingest nifti scans/ --out corpus --dataset ours --modality mri",
    )  # fmt: skip
    verb.set_defaults(json=False, quiet=False, debug=False)
    _common(verb)
    commands = verb.add_subparsers(
        dest="what", required=True, metavar="WHAT", parser_class=Lazy, title="commands and steps"
    )
    for name, (about, module) in COMMANDS.items():
        _command(commands, name, about, module)
    kinds = [name.removeprefix("ingest-") for name in STEPS if name.startswith("ingest-")]
    if kinds:
        ingest = commands.add_parser("ingest", help=f"files -> records: {', '.join(kinds)}")
        several = ingest.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Lazy)
        for kind in kinds:
            _step(several, kind, f"ingest-{kind}")
    for name in STEPS:
        if not name.startswith("ingest-"):
            _step(commands, name, name)


def run(options: Namespace) -> Result:
    """One command or step."""
    if options.what in COMMANDS:
        import importlib

        module = importlib.import_module(COMMANDS[options.what][1])
        found: Result = module.run(options)
        return found
    return _run_step(options)


def _command(commands: Any, name: str, about: str, module: str) -> None:
    def fill(parser: argparse.ArgumentParser) -> None:
        import importlib

        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        importlib.import_module(module).add(parser)
        _common(parser)

    commands.add_parser(name, help=about, description=about).fill = fill


def _step(commands: Any, word: str, name: str) -> None:
    """A parser whose options are the fields of a step."""

    def fill(parser: argparse.ArgumentParser) -> None:
        from monai_unimedvl.data.step import Source, step_class

        kind = step_class(name)
        source = issubclass(kind, Source)
        parser.description = f"{kind.about[0].upper()}{kind.about[1:]}."
        parser.epilog = f"Example:\n  unimedvl data {name.replace('-', ' ', 1) if source else name} " + (
            kind.example or "records.jsonl --out kept.jsonl"
        )
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        if source:
            parser.add_argument("path", help="folder or file to read")
            parser.add_argument(
                "--out", required=True, metavar="FOLDER", help="of the corpus: records.jsonl, images/"
            )
        else:
            parser.add_argument("records", nargs="+", help=".jsonl, .parquet or a folder of shards")
            parser.add_argument(
                "--out", required=True, metavar="FILE", help=".jsonl or .parquet; rejects beside it"
            )
        group = parser.add_argument_group("options of the step")
        for field in fields(kind):
            if field.name not in ("path", "records") and not (source and field.name == "root"):
                _flag(group, field)
        _common(parser)

    parser = commands.add_parser(word, help=_about(name))
    parser.fill = fill
    parser.set_defaults(step=name)


def _about(name: str) -> str:
    """The line about a step, read from its source: running that would load what only the work needs."""
    import ast
    import importlib.util

    module, kind = STEPS[name].split(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, f"{module} is not there"
    for node in ast.parse(Path(found.origin).read_text("utf8")).body:
        if isinstance(node, ast.ClassDef) and node.name == kind:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "about" and line.value:
                    return str(ast.literal_eval(line.value)).replace("%", "%%")
    raise AssertionError(f"{kind} of {module} does not say what it is about")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
    )
    parser.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress and no notes on stderr"
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole traceback of an error"
    )


def _flag(group: Any, field: Any) -> None:
    """A field as a flag: truths have a --no- form, mappings take KEY=VALUE, all others a value."""
    kind, about = str(field.type), str(field.metadata.get("about", ""))
    name = "--" + field.name.replace("_", "-")
    required = field.default is MISSING and field.default_factory is MISSING
    shown = field.default if field.default is not MISSING else None
    told = about + ("" if shown in (None, "", (), False) or "default" in about else f" (default: {shown})")
    told = told.replace("%", "%%")
    if kind == "bool":
        group.add_argument(
            name, action=argparse.BooleanOptionalAction, default=None, help=about.replace("%", "%%")
        )
    elif kind.startswith("Mapping"):
        group.add_argument(name, nargs="+", metavar="KEY=VALUE", default=None, help=told)
    elif kind.startswith("tuple"):
        group.add_argument(name, nargs="+", metavar="VALUE", default=None, help=told, required=required)
    else:
        number = {"int": int, "float": float}.get(kind.split(" |")[0], str)
        group.add_argument(
            name, type=number, default=None, help=told, required=required, metavar=number.__name__.upper()
        )


def _given(options: Namespace, kind: type[Step]) -> dict[str, Any]:
    """The fields that the command line says something of."""
    found: dict[str, Any] = {}
    for field in fields(kind):
        value = getattr(options, field.name, None)
        if value is None:
            continue
        if str(field.type).startswith("Mapping"):
            pairs = [pair.partition("=") for pair in value]
            if wrong := [key for key, equal, _ in pairs if not equal or not key]:
                raise ValueError(f"--{field.name} got {wrong[0]!r}, expected KEY=VALUE: write it so.")
            value = {key: o.value(text) for key, _, text in pairs}
        elif str(field.type).startswith("tuple"):
            value = tuple(value)
        found[field.name] = value
    return found


def _run_step(options: Namespace) -> Result:
    from monai_unimedvl.data.facts import patients_told, told_by
    from monai_unimedvl.data.files import Sink, read_records, rejects_beside, write_json
    from monai_unimedvl.data.record import Record
    from monai_unimedvl.data.step import Source, Tally, make, step_class

    kind = step_class(options.step)
    given = _given(options, kind)
    tally = Tally()
    if issubclass(kind, Source):
        home = folder = Path(options.out)
        given["root"] = str(folder)
        out = folder / "records.jsonl"
        if out.exists():
            raise ValueError(f"{out} is there already, expected a new folder: choose another or remove it.")
        step = make({"step": options.step, **given})
        items = step((), tally)
    else:
        out = Path(options.out)
        for path in options.records:
            if Path(path).resolve() == out.resolve():
                raise ValueError(f"--out {out} is the input itself, expected another name: change it.")
        first = Path(options.records[0])
        home = Path(given.get("root") or (first if first.is_dir() else first.parent))
        if "root" in {field.name for field in fields(kind)}:
            given["root"] = str(home)
        step = make({"step": options.step, **given})
        items = step(_numbered(options.records, map(read_records, options.records)), tally)
    told: Counter[str] = Counter()
    with Sink(out) as sink:
        for item in _shown(items, tally, options):
            sink.put(item)
            if isinstance(item, Record) and isinstance(step, Source):
                told[told_by(item.facts, item.patient, item.study)] += 1
    counts = tally.to_json()
    report = out.with_name(f"{out.stem}.report.json")
    about = {"patients_told_by": dict(sorted(told.items()))} if told else {}
    write_json(report, {"step": options.step, "options": _harmless(step), **counts, **about})
    lines = [
        f"{options.step}: {counts['in']} in = {counts['kept']} kept + {counts['rejected']} rejected; "
        f"{counts['records']} records in {out}"
    ]
    lines += [f"  {count} {code}" for code, count in counts["reasons"].items()]
    if tally.passed:
        lines.append(f"  {tally.passed} lines were no records, or rejected before")
    if told:
        finds = "patient_in" in {field.name for field in fields(kind)} and set(told) != {"patient"}
        lines.append(f"  {patients_told(told)}{' Say --patient-in PATTERN.' if finds else ''}")
    if (home / "images").is_dir() and home.resolve() != out.parent.resolve():
        lines.append(f"  the images of these records stay in {home}: say --root {home} to the next step")
    outputs = [str(out), str(report)] + ([str(rejects_beside(out))] if sink.rejects else [])
    values = {**counts, **about, "passed": tally.passed, "outputs": outputs}
    if isinstance(step, Source) and sink.rejects and not counts["records"]:
        lines.append(f"  nothing was kept, expected some records: {rejects_beside(out)} says why")
        values["ok"] = False
    return lines, values


def _numbered(paths: Sequence[str], files: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """The items of all files; of several, a reject says by number which one it stood in."""
    from monai_unimedvl.data.record import Reject

    for number, items in enumerate(files, 1):
        for item in items:
            if isinstance(item, Reject) and item.place and len(paths) > 1:
                item = replace(item, place=f"{item.place} of file {number}")
            yield item


def _harmless(step: Step) -> dict[str, Any]:
    """The options without paths of this machine."""
    return {key: value for key, value in step.options().items() if key not in ("path", "root", "images")}


def _shown(items: Iterator[Item], tally: Tally, options: Namespace) -> Iterator[Item]:
    """The items, with a bar that counts them where somebody looks."""
    from tqdm import tqdm

    quiet = getattr(options, "quiet", False) or not sys.stderr.isatty()
    with tqdm(unit=" records", disable=quiet, leave=False, desc=options.step) as bar:
        for item in items:
            bar.update()
            yield item
