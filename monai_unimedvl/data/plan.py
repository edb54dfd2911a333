# SPDX-License-Identifier: Apache-2.0
"""What the YAML of a pipeline says, checked: sources, steps, and the passes that they make.

name: ours
sources: [{step: ingest, kind: images, path: fundus, dataset: ours, modality: fundus, licence: CC-BY-4.0}]
steps: [{step: textify}, {step: dedup}, {step: split}]
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.data.step import Each, Source, Stream, make

KEYS = ("name", "about", "files", "sources", "steps", "shards", "batch", "seed")
SHARDS = {"max_bytes": 256_000_000, "commercial": False}
PIPELINES = Path(__file__).with_name("pipelines")


@dataclass(frozen=True)
class Pass:
    """A run over all parts, and the decisions that follow it; all steps are options as JSON."""

    each: tuple[str, ...] = ()
    wholes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """What a YAML says, checked.

    Args:
        name: of the corpus. about: a sentence for its card.
        files: name below `files:` -> path of a file, or what a JSON file of this name is to hold; for sources
            that want folders of their own, such as images/ and masks/.
        sources, steps: options of steps; a source may have `steps` of its own, and be `optional`.
        shards: max_bytes of a shard; commercial: refuse licences that forbid commercial use.
        batch: files, series or rows that are one part.
        seed: of every step that has a seed and is given none.
    """

    name: str
    sources: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]] = ()
    about: str = ""
    files: Mapping[str, Any] = field(default_factory=dict)
    shards: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources or not all(isinstance(each, Mapping) for each in (*self.sources, *self.steps)):
            raise ValueError(
                "the pipeline has no sources or steps that are mappings: write {step: NAME, ...}."
            )
        if not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"batch is {self.batch!r}, expected a whole number above 0: raise it.")
        if unknown := set(self.shards) - set(SHARDS):
            raise ValueError(
                f"shards has no option {sorted(unknown)[0]!r}, expected some of {', '.join(SHARDS)}."
            )

    @property
    def digest(self) -> str:
        """16 hex digits of all that is asked for."""
        from monai_unimedvl import __version__

        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return hashlib.sha256(json.dumps([__version__, told], sort_keys=True).encode()).hexdigest()[:16]


def read_pipeline(path: str | Path) -> Pipeline:
    """The pipeline of a YAML file.

    Raises:
        ValueError: no such file, no YAML, or a key that is missing or unknown.
    """
    path = Path(path)
    if not path.is_file():
        names = ", ".join(sorted(each.stem for each in shipped_pipelines()))
        raise ValueError(
            f"{path} is no file, expected a pipeline in YAML, or the name of one here ({names})."
        )
    try:
        told = yaml.safe_load(path.read_text("utf8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no YAML ({' '.join(str(error).split())}): mend it.") from error
    if not isinstance(told, Mapping) or "sources" not in told or (unknown := set(told) - set(KEYS)):
        found = sorted(map(str, unknown)) if isinstance(told, Mapping) and "sources" in told else "no sources"
        raise ValueError(f"{path.name} has {found}, expected a mapping with {', '.join(KEYS)}: mend it.")
    return Pipeline(**{"name": path.stem, **told})


def shipped_pipelines() -> list[Path]:
    """The files of the pipelines of this package."""
    return sorted(PIPELINES.glob("*.yaml"))


def shipped(name: str | Path) -> Path:
    """The file of a pipeline: the path itself, or one of this package by its name."""
    inside = PIPELINES / f"{name}.yaml"
    return inside if not Path(name).exists() and inside.is_file() else Path(name)


def resolved(value: Any) -> Any:
    """A value of an option; `package:NAME/sub/path` is in a package, `atlas:...` in the atlas cache.

    Raises:
        ValueError: no such package.
    """
    if isinstance(value, list):
        return [resolved(each) for each in value]
    if not isinstance(value, str) or not value.startswith(("package:", "atlas:")):
        return value
    scheme, _, rest = value.partition(":")
    if scheme == "atlas":
        return str(default_root() / rest)
    name, _, inside = rest.partition("/")
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ValueError(f"package {name!r} is not installed, expected it for {value}: `pip install` it.")
    return str(Path(found.origin).parent / inside)


def with_shards(pipeline: Pipeline, **settings: Any) -> Pipeline:
    """The pipeline with other settings of its shards."""
    told = {each.name: getattr(pipeline, each.name) for each in fields(pipeline)}
    return Pipeline(**{**told, "shards": {**pipeline.shards, **settings}})


def name_of(options: Mapping[str, Any]) -> str:
    """The name of the step of options; `{step: ingest, kind: nifti}` is "ingest-nifti"."""
    name = str(options.get("step", ""))
    return f"{name}-{options['kind']}" if name == "ingest" and "kind" in options else name


def must_be_each(options: str) -> None:
    """Nothing, where a step does each record by itself, as those of one source must.

    Raises:
        ValueError: it decides on all.
    """
    step = make(json.loads(options))
    if not isinstance(step, Each):
        raise ValueError(f"step {step.name!r} of a source decides on all records: move it to `steps`.")


def passes_of(steps: Iterable[str]) -> list[Pass]:
    """The steps in passes: those of each record, then those of all; ids are unique at the end."""
    passes = [Pass()]
    for options in steps:
        step = make(json.loads(options))
        if isinstance(step, Source):
            raise ValueError(f"step {step.name!r} reads files: move it to the sources.")
        last = passes[-1]
        if isinstance(step, Stream):
            passes[-1] = Pass(last.each, (*last.wholes, options))
        elif last.wholes:
            passes.append(Pass((options,)))
        else:
            passes[-1] = Pass((*last.each, options))
    passes[-1] = Pass(passes[-1].each, (*passes[-1].wholes, json.dumps({"step": "unique-ids"})))
    return passes
