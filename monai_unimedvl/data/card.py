# SPDX-License-Identifier: Apache-2.0
"""The data card of a corpus: for people as Markdown, for programs as Croissant JSON-LD.

Both are made of the manifest and of the pipeline alone, so that the same corpus has the same card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from monai_unimedvl.data.facts import patients_told
from monai_unimedvl.data.licences import roll_up
from monai_unimedvl.data.record import SPLITS

COLUMNS = (
    ("id", "stable over rebuilds"), ("main_task_type", "such as image-to-text"),
    ("sub_task_type", "such as vqa"),
    ("modality", "such as mri"), ("dataset", "that it belongs to"), ("licence", "by SPDX, or unknown"),
    ("source", "where the dataset is from"), ("patient", "pseudonym"), ("study", "pseudonym"),
    ("split", "train, val, test or empty"), ("facts", "JSON: labels, boxes, measurements"),
    ("provenance", "JSON: how each derived field was made"),
)  # fmt: skip
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
    "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator",
    "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
PUBLIC = ("package:", "atlas:", "files:")  # places that name nobody
SITE = "(of the site)"
OPEN = """```python
import datasets
rows = datasets.load_dataset("parquet", data_files="shard-*.parquet", split="train")
rows[0]["input_img"]          # pictures, decoded; facts and provenance are JSON in text
```
```sql
SELECT split, modality, sub_task_type, count(*) FROM 'shard-*.parquet' GROUP BY ALL;   -- DuckDB
```"""


def card(manifest: Mapping[str, Any], pipeline: Mapping[str, Any], leaks: Sequence[str] = ()) -> str:
    """The card in Markdown.

    Args:
        manifest: of the corpus; see `finish`. pipeline: name, about, sources, steps as they were asked for.
        leaks: lines of a `LeakReport`.
    """
    counts, total = manifest["counts"], max(manifest["records"], 1)
    splits = ", ".join(
        f"{split or 'no split'} {counts['split'][split]:,}" for split in SPLITS if split in counts["split"]
    )
    lines = [f"# {pipeline['name']}", "", str(pipeline["about"]).strip() or "A corpus for UniMedVL.", ""]
    lines += [f"{manifest['records']:,} records in {len(manifest['shards'])} Parquet shards: {splits}.", ""]
    lines += [
        "For research; no clinical claim follows from it. Built by `unimedvl data build`.",
        "",
        OPEN,
        "",
    ]
    lines += ["## Licences", "", "| licence | kind | records | what it asks |", "|---|---|---|---|"]
    for name, kind, count, asks in roll_up(manifest["licences"]):
        lines.append(f"| {_cell(name)} | {kind} | {count:,} | {asks} |")
    lines += [
        "",
        "A record keeps the licence of its source; the corpus as a whole is bound by all of them.",
        "",
    ]
    lines += ["## Sources", "", "| dataset | source | licence | records |", "|---|---|---|---|"]
    for key, count in manifest["sources"].items():
        dataset, source, licence = key.split("\t")
        lines.append(f"| {_cell(dataset)} | {_cell(source)} | {_cell(licence)} | {count:,} |")
    if manifest["absent"]:
        lines += ["", f"Not there when it was built: {', '.join(map(_cell, manifest['absent']))}."]
    for title, name in (("Tasks", "sub_task_type"), ("Modalities", "modality"), ("Words", "words_by")):
        table = manifest["words_by"] if name == "words_by" else counts[name]
        lines += ["", f"## {title}", "", f"| {title.lower()} | records | share |", "|---|---|---|"]
        lines += [f"| {_cell(key)} | {n:,} | {100 * n / total:.1f} % |" for key, n in table.items()]
    lines += [
        "",
        '"Words" says what made the messages of a record: its `provenance` says it record by record.',
    ]
    lines += [
        "",
        "## What was left out",
        "",
        "| step | in | kept | rejected | reasons |",
        "|---|---|---|---|---|",
    ]
    for step in manifest["steps"]:
        reasons = ", ".join(f"{code} {n:,}" for code, n in step["reasons"].items())
        numbers = " | ".join(f"{step[name]:,}" for name in ("in", "kept", "rejected"))
        lines.append(f"| {_cell(step['step'])} | {numbers} | {reasons} |")
    lines += ["", "## Splits", "", _patients(manifest), ""]
    lines += [*leaks, ""] if leaks else []
    lines += ["## Benchmarks", "", _decontaminated(pipeline), ""]
    lines += ["## Made by", "", "Thresholds and seeds stand here; what is not named has its default.", ""]
    told = {"sources": pipeline["sources"], "steps": pipeline["steps"], "seed": pipeline["seed"]}
    lines += [
        "```yaml",
        yaml.safe_dump(_plain(told), sort_keys=False, allow_unicode=True, width=100).rstrip(),
        "```",
        "",
    ]
    lines += [
        f"Pipeline {manifest['pipeline']}. Patients and studies are pseudonyms; only the holder of the key"
    ]
    lines += ["can make them again. Checksums stand in `manifest.json`, rejects in `rejects.jsonl`."]
    return "\n".join(lines) + "\n"


def croissant(manifest: Mapping[str, Any], pipeline: Mapping[str, Any]) -> dict[str, Any]:
    """The card in Croissant 1.0: files with their checksums, and the columns of a record."""
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject", "@id": shard["name"], "name": shard["name"],
            "contentUrl": shard["name"], "contentSize": f"{shard['bytes']} B",
            "encodingFormat": "application/x-parquet", "sha256": shard["sha256"],
        }
        for shard in manifest["shards"]
    ]  # fmt: skip
    every = {
        "@type": "cr:FileSet", "@id": "shards", "name": "shards", "encodingFormat": "application/x-parquet",
        "includes": "shard-*.parquet",
    }  # fmt: skip
    columns = [
        {
            "@type": "cr:Field", "@id": f"records/{name}", "name": name, "description": about,
            "dataType": "sc:Text", "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
        }
        for name, about in COLUMNS
    ]  # fmt: skip
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": _slug(str(pipeline["name"])),
        "description": str(pipeline["about"]).strip() or "A corpus for UniMedVL.",
        "license": [name for name, *_ in roll_up(manifest["licences"])],
        "url": "https://schema.org/Dataset" if not pipeline.get("url") else pipeline["url"],
        "version": "1.0.0",
        "distribution": [*files, every],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "records", "name": "records", "field": columns}],
    }


def _patients(manifest: Mapping[str, Any]) -> str:
    found = [f"{split or 'no split'} {count:,}" for split, count in manifest["patients"].items()]
    told = patients_told(manifest["patients_told_by"])
    return f"Patients known by pseudonym: {', '.join(found) or 'none'}. {told[0].upper()}{told[1:]}"


def _decontaminated(pipeline: Mapping[str, Any]) -> str:
    lists = [each.get("against", []) for each in pipeline["steps"] if each.get("step") == "decontaminate"]
    named = [
        str(name).rsplit("/", 1)[-1] for each in lists for name in ([each] if isinstance(each, str) else each)
    ]
    if named:
        return f"Pictures and texts of these lists were left out: {', '.join(named)}."
    return (
        "Nothing was compared with the pictures and questions of benchmarks: a score on a public benchmark "
        "may be one on training data. `unimedvl data prints` and the step `decontaminate` do that."
    )


def _plain(value: Any, key: str = "") -> Any:
    """Mappings and lists as YAML writes them; of a path on this machine nothing that may hold a name."""
    if isinstance(value, Mapping):
        return {name: _plain(each, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, key) for each in value]
    if not isinstance(value, str) or value.startswith(PUBLIC):
        return value
    machine = value.startswith(("/", "~")) or value[1:3] == ":\\"
    if key == "path" or machine and key == "images":  # folders of a site are named after patients, too
        return SITE
    return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if machine else value


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name) or "corpus"
