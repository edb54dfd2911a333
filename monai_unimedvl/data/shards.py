# SPDX-License-Identifier: Apache-2.0
"""Records as Parquet shards with their images inside, that `datasets`, pandas and DuckDB open too.

    FOLDER/manifest.json         records, counts, licences; name, rows, bytes and sha256 of each shard
    FOLDER/shard-00000.parquet   one row a record; `input_img` and `output_img` hold `datasets.Image`s, whose
                                 paths are hashes: no name of a file goes along
    FOLDER/rejects.jsonl         what was left out, and why

The same records give the same bytes. A folder is written whole or not at all, and never written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from monai.utils import optional_import

from monai_unimedvl.data.bare import content_name
from monai_unimedvl.data.dialogue import embed
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Message, Record, Reject, write_jsonl
from monai_unimedvl.packages import needed
from monai_unimedvl.provenance.facts import sha256

FORMAT = "unimedvl-shards 1"
MANIFEST = "manifest.json"
WORDS = ("id", "main_task_type", "sub_task_type", "modality", "dataset", "licence", "source")
NAMES = ("patient", "study", "split")
OBJECTS = ("facts", "provenance")  # JSON in a column of text
IMAGES = ("input_img", "output_img")
COUNTED = ("split", "kind", "modality", "dataset", "main_task_type", "sub_task_type")
HASHED = re.compile(r"(images|masks)/[0-9a-f]{2}/[0-9a-f]{24}\.(png|jpe?g|tiff?|gif|bmp|webp)")
ROWS_OF_GROUP = 16  # read together; few, because a shuffled epoch needs some of each
BYTES_OF_GROUP = 32_000_000


def write_shards(
    records: Iterable[Record | Reject],
    folder: str | Path,
    *,
    root: str | Path | None = None,
    max_bytes: int = 256_000_000,
) -> dict[str, Any]:
    """Write a corpus as shards; returns its manifest.

    Args:
        records: in the order that they are to have; rejects are counted and written beside the shards.
        root: folder of images that are not embedded yet.
        max_bytes: of images a shard; one record more may go over it.

    Raises:
        ValueError: the folder is there and not empty, or no record is left.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, expected a new folder: choose another or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        manifest = _write(embed(records, root) if root is not None else records, aside, max_bytes)
        os.chmod(aside, 0o755)  # a temporary folder is for its owner only
        if folder.exists():
            folder.rmdir()
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def check_shards(folder: str | Path, check: Literal["sha256", "sizes"] = "sha256") -> dict[str, Any]:
    """The manifest of a folder whose shards are all there and as they were written.

    Args:
        check: "sha256" reads every byte; "sizes" only looks at lengths.

    Raises:
        ValueError: no manifest, a shard that is missing, cut, or has another byte; named, with the mend.
    """
    folder = Path(folder)
    if check not in ("sha256", "sizes"):
        raise ValueError(f"check is {check!r}, expected 'sha256' or 'sizes': use one of them.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} has no {MANIFEST} that can be read, expected a folder that write_shards made: "
            "check the path, or build the shards again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ValueError(
            f"{folder / MANIFEST} has format {found!r}, expected {FORMAT!r}: build the shards again."
        )
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, expected a shard of {shard['bytes']:,} bytes: copy it again from "
                "where the corpus was built."
            )
        if path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, the manifest says {shard['bytes']:,}: copy it "
                "again from where the corpus was built."
            )
        if check == "sha256" and (digest := sha256(path)) != shard["sha256"]:
            raise ValueError(
                f"{path} has sha256 {digest[:12]}..., the manifest says {shard['sha256'][:12]}...: a byte "
                "has changed, so copy it again from where the corpus was built."
            )
    return manifest


def _write(items: Iterable[Record | Reject], folder: Path, max_bytes: int) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*COUNTED, "licence")}
    waiting: list[Record] = []
    filled = 0

    def flush() -> None:
        shards.append(write_shard(waiting, folder, f"shard-{len(shards):05d}.parquet"))
        waiting.clear()

    for item in _once(items):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        waiting.append(item)
        filled += _weight(item)
        for name, counter in counts.items():
            counter[getattr(item, name)] += 1
        if filled >= max_bytes:
            flush()
            filled = 0
    if waiting:
        flush()
    if not shards:
        why = f"; the first of {len(rejects)} rejects: {rejects[0].reason}" if rejects else ""
        raise ValueError(f"write_shards got no record that can be kept, expected one at least{why}")
    if rejects:
        write_jsonl(rejects, folder / "rejects.jsonl")
    manifest = {
        "format": FORMAT, "records": sum(shard["rows"] for shard in shards),
        "rejected": dict(sorted(Counter(reject.code for reject in rejects).items())), "shards": shards,
        "licences": dict(sorted(counts.pop("licence").items())),
        "counts": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf8")
    return manifest


def _once(items: Iterable[Record | Reject]) -> Iterator[Record | Reject]:
    """The items, a second record of an id and one without its images' bytes turned into rejects."""
    seen: set[int] = set()  # 64 bits of each id: a corpus has millions
    for item in items:
        if isinstance(item, Record):
            bare = any(image.content is None for image in (*item.input_img, *item.output_img))
            key = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:8], "big")
            if bare:
                reason = "an image is not embedded, expected its bytes, or the folder as root."
                yield Reject("image-missing", reason, item.id, "shards")
                continue
            if key in seen:
                yield Reject(
                    "duplicate-id", "a record of this id came before, expected one.", item.id, "shards"
                )
                continue
            seen.add(key)
        yield item


def _weight(record: Record) -> int:
    return 1000 + sum(len(image.content or b"") for image in (*record.input_img, *record.output_img))


def write_shard(records: Iterable[Record], folder: Path, name: str) -> dict[str, Any]:
    """Write one file of records with their images embedded; returns its name, rows, bytes and sha256.

    Only the records of one row group are in memory.
    """
    arrow, _ = optional_import("pyarrow")
    schema = arrow_schema(arrow)
    lists = [f"{column}.list.element" for column in IMAGES]
    plain = [f"{element}.bytes" for element in lists]
    others = [*WORDS, *NAMES, *OBJECTS, *(f"{element}.path" for element in lists)]
    others += [f"{c}_info.list.element.{part}" for c in IMAGES for part in ("height", "width", "place")]
    others += [f"message.list.element.{part}" for part in ("from", "value")]
    path, rows = folder / name, 0
    with parquet().ParquetWriter(
        path, schema, use_dictionary=[column for column in others if column in (*WORDS[1:], "split")],
        write_statistics=False,
        compression={**{column: "NONE" for column in plain}, **{column: "ZSTD" for column in others}},
    ) as writer:  # fmt: skip
        for group in _groups(records):
            table = arrow.Table.from_pylist([row_of(record) for record in group], schema=schema)
            writer.write_table(table, row_group_size=len(group))
            rows += len(group)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"name": name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    for record in records:
        group.append(record)
        if len(group) == ROWS_OF_GROUP or sum(map(_weight, group)) > BYTES_OF_GROUP:
            yield group
            group = []
    if group:
        yield group


def arrow_schema(arrow: Any) -> Any:
    """Arrow's schema, with the features that `datasets` reads from it."""
    text = arrow.string()
    image = arrow.struct([("bytes", arrow.binary()), ("path", text)])
    place = arrow.struct([("height", arrow.int32()), ("width", arrow.int32()), ("place", text)])
    said = arrow.struct([("from", text), ("value", text)])
    columns = [(name, text) for name in WORDS]
    columns += [(name, arrow.list_(image)) for name in IMAGES]
    columns += [(f"{name}_info", arrow.list_(place)) for name in IMAGES]
    columns += [("message", arrow.list_(said)), *((name, text) for name in (*NAMES, *OBJECTS))]

    def value(kind: str) -> dict[str, str]:
        return {"dtype": kind, "_type": "Value"}

    def many(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "List"}

    size = {"height": value("int32"), "width": value("int32"), "place": value("string")}
    features: dict[str, Any] = {name: value("string") for name in (*WORDS, *NAMES, *OBJECTS)}
    features |= {name: many({"_type": "Image"}) for name in IMAGES}
    features |= {f"{name}_info": many(size) for name in IMAGES}
    features["message"] = many({"from": value("string"), "value": value("string")})
    ordered = {name: features[name] for name, _ in columns}
    return arrow.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": ordered}})})


def row_of(record: Record) -> dict[str, Any]:
    """A record as a row of `arrow_schema`; `record_of` is the way back."""
    row: dict[str, Any] = {name: getattr(record, name) for name in (*WORDS, *NAMES)}
    for name in OBJECTS:
        row[name] = json.dumps(record.to_json().get(name, {}), ensure_ascii=False, sort_keys=True)
    for name in IMAGES:
        images: Sequence[ImageFile] = getattr(record, name)
        row[name] = [{"bytes": image.content, "path": _path_of(image)} for image in images]
        row[f"{name}_info"] = [
            {
                "height": image.height,
                "width": image.width,
                "place": json.dumps(dict(image.place), ensure_ascii=False),
            }
            for image in images
        ]
    row["message"] = [message.to_json() for message in record.message]
    return row


def _path_of(image: ImageFile) -> str:
    """The path of an image in a row; of an embedded one its hash, since files are named after patients."""
    if image.content is None or HASHED.fullmatch(image.path):
        return image.path
    return content_name(image.content)


def record_of(row: dict[str, Any]) -> Record:
    """The record of a row as `write_shards` wrote it, its images embedded.

    Raises:
        InvalidRecord: it is not.
    """
    try:
        values = {name: row[name] for name in (*WORDS, *NAMES)}
        values |= {name: json.loads(row[name]) for name in OBJECTS}
        for name in IMAGES:
            values[name] = tuple(
                ImageFile(
                    image["path"], info["height"], info["width"], json.loads(info["place"]), image["bytes"]
                )
                for image, info in zip(row[name], row[f"{name}_info"], strict=True)
            )
        values["message"] = tuple(Message(each["from"], each["value"]) for each in row["message"])
        return Record(**values)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidRecord(
            "bad-row", f"the row of {row.get('id')} is not as write_shards made it ({error})."
        ) from error


def digest_of(manifest: dict[str, Any]) -> str:
    """16 hex digits of the bytes of all shards."""
    return hashlib.sha256(" ".join(shard["sha256"] for shard in manifest["shards"]).encode()).hexdigest()[:16]


def parquet() -> Any:
    """pyarrow.parquet, or an error that says how to get it."""
    return needed("pyarrow.parquet", "A shard", "data")
