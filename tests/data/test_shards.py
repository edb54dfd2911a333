# SPDX-License-Identifier: Apache-2.0
"""Shards hold what was put in, open elsewhere too, and tell when a byte of them has changed."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl.cli.train import MORE
from monai_unimedvl.data import corpus as corpus_module
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_records import atlas_records
from monai_unimedvl.data.bare import content_name
from monai_unimedvl.data.card import OPEN
from monai_unimedvl.data.corpus import Corpus, _Source
from monai_unimedvl.data.dialogue import dialogue, pixels
from monai_unimedvl.data.loader import PackLoader
from monai_unimedvl.data.mixture import Mixture
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject, read_jsonl, without_content
from monai_unimedvl.data.shards import check_shards, record_of, row_of, write_shards
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.presets import NANO_RULE
from monai_unimedvl.training.settings import read_config
from monai_unimedvl.transforms.segments import ToSegments

pytest.importorskip("pyarrow", reason="shards need the extra 'data'")
TASKS = ["vqa", "caption", "text-to-image", "sr4", "seg-nuclei"]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Real pictures, questions, drawings and edits, and one record of words alone."""
    dataset = AtlasDataset(section="train", tasks=TASKS, permissive_only=True, progress=False)
    found = list(atlas_records(dataset))
    some = [r for task in TASKS for r in [r for r in found if r.sub_task_type == task][:40:2]]
    said = (Message("human", "What is CT?"), Message("gpt", "Computed tomography."))
    words = replace(some[0], id="words-1", sub_task_type="text", input_img=(), message=said)
    return [*some, words]


def hashed(record: Record) -> Record:
    """The record as shards give it back: an image's path says its bytes and nothing else."""

    def named(images: tuple[ImageFile, ...]) -> tuple[ImageFile, ...]:
        return tuple(replace(image, path=content_name(image.content or b"")) for image in images)

    return replace(record, input_img=named(record.input_img), output_img=named(record.output_img))


@pytest.fixture(scope="module")
def folder(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records as several shards."""
    path = tmp_path_factory.mktemp("corpus") / "shards"
    write_shards(records, path, max_bytes=60_000)
    return path


def test_records_come_back_with_their_images_and_the_manifest_counts_them(
    folder: Path, records: list[Record]
) -> None:
    held = Corpus(folder)
    assert list(held) == [hashed(r) for r in records] and len(held) == len(records) > 60
    assert [r.input_img[0].content for r in held if r.input_img] == [
        r.input_img[0].content for r in records if r.input_img
    ]
    manifest = json.loads((folder / "manifest.json").read_text("utf8"))
    assert len(manifest["shards"]) > 2 and manifest["records"] == len(records) == sum(
        shard["rows"] for shard in manifest["shards"]
    )
    assert manifest["counts"]["kind"] == dict(sorted(Counter(r.kind for r in records).items()))
    assert sum(manifest["licences"].values()) == len(records) and "unknown" not in manifest["licences"]
    turns = dialogue(held[0])
    assert turns[0].role == "user" and torch.equal(turns[0].parts[0], pixels(records[0].input_img[0]))


def test_the_same_records_give_the_same_bytes(folder: Path, records: list[Record], tmp_path: Path) -> None:
    again = write_shards(iter(records), tmp_path / "again", max_bytes=60_000)
    assert again == json.loads((folder / "manifest.json").read_text("utf8"))
    for shard in again["shards"]:
        assert (tmp_path / "again" / shard["name"]).read_bytes() == (folder / shard["name"]).read_bytes()


def test_datasets_and_pandas_open_them(folder: Path, records: list[Record], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'data'")
    pandas = pytest.importorskip("pandas", reason="needs the extra 'data'")
    found = datasets.load_dataset(
        "parquet", data_files=str(folder / "shard-*.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert found.num_rows == len(records) and found.features["input_img"] == datasets.List(datasets.Image())
    row = next(row for row in found if row["id"] == records[0].id)
    expected = pixels(records[0].input_img[0]).movedim(0, -1).mul(255).round().byte().numpy()
    assert np.array_equal(np.asarray(row["input_img"][0].convert("RGB")), expected)
    assert row["message"][0] == records[0].message[0].to_json()
    frame = pandas.concat(map(pandas.read_parquet, sorted(folder.glob("*.parquet"))))
    assert list(frame["id"]) == [r.id for r in records]


def test_duckdb_opens_them_with_the_query_of_the_card(folder: Path, records: list[Record]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs the extra 'test'")
    query = OPEN.split("```sql\n")[1].split(";")[0]
    with duckdb.connect() as database:
        rows = database.sql(query.replace("shard-*.parquet", str(folder / "shard-*.parquet"))).fetchall()
        shown = database.sql(
            f"SELECT id, input_img[1].bytes FROM '{folder / 'shard-*.parquet'}' WHERE len(input_img) > 0"
        ).fetchall()
    counted = Counter((r.split, r.modality, r.sub_task_type) for r in records)
    assert {(split, modality, task): count for split, modality, task, count in rows} == counted
    known = {r.id: r.input_img[0].content for r in records if r.input_img}
    assert dict(shown) == known


def test_rejects_are_counted_and_kept_and_a_second_of_an_id_is_one(
    records: list[Record], tmp_path: Path
) -> None:
    bare = replace(without_content(records[1]), id="bare")
    given = [records[0], records[0], Reject("too-long", "why", "x"), bare, records[2]]
    manifest = write_shards(given, tmp_path / "shards")
    assert manifest["records"] == 2
    assert manifest["rejected"] == {"duplicate-id": 1, "image-missing": 1, "too-long": 1}
    lines = (tmp_path / "shards" / "rejects.jsonl").read_text("utf8").splitlines()
    assert [json.loads(line)["code"] for line in lines] == ["duplicate-id", "too-long", "image-missing"]


def test_images_are_taken_from_a_folder(records: list[Record], tmp_path: Path) -> None:
    for record in records[:4]:
        for image in record.input_img:
            (tmp_path / "corpus" / image.path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "corpus" / image.path).write_bytes(image.content or b"")
    (tmp_path / "corpus" / records[3].input_img[0].path).write_bytes(b"cut")
    manifest = write_shards(map(without_content, records[:4]), tmp_path / "out", root=tmp_path / "corpus")
    assert manifest["records"] == 3 and manifest["rejected"] == {"image-damaged": 1}
    assert list(Corpus(tmp_path / "out")) == [hashed(r) for r in records[:3]]


def test_no_name_of_a_file_goes_along_but_shards_of_before_are_read(
    records: list[Record], tmp_path: Path
) -> None:
    own = replace(records[0].input_img[0], path="Quasimodo/Esmeralda.Frollo")
    write_shards([replace(records[0], input_img=(own,))], tmp_path / "shards")
    (held,) = Corpus(tmp_path / "shards")
    assert held == hashed(records[0]) and held.input_img[0].path.endswith(".png")
    assert b"Quasimodo" not in (tmp_path / "shards" / "shard-00000.parquet").read_bytes()
    gone = [replace(own, content=None), replace(own, content=b"cut")]
    bad = [replace(records[0], id=f"bad-{n}", input_img=(image,)) for n, image in enumerate(gone)]
    write_shards([records[0], *bad], tmp_path / "some", root=tmp_path)
    write_shards([records[0], bad[0]], tmp_path / "bare")
    for left in ("some", "bare"):
        said = (tmp_path / left / "rejects.jsonl").read_text("utf8")
        assert '"bad-0"' in said and not any(word in said for word in ("Quasimodo", "Esmeralda", "Frollo"))
    row = row_of(held)
    assert row_of(record_of(row)) == row
    row["input_img"][0]["path"] = "Doe/Jane.png"  # as versions before wrote it
    assert record_of(row).input_img[0].path == "Doe/Jane.png"
    ours = f"images/ab/{'ab' * 12}.png"  # a hash of pixels, as `ingest` names its pictures
    assert row_of(replace(records[0], input_img=(replace(own, path=ours),)))["input_img"][0]["path"] == ours


def test_a_folder_is_written_whole_or_not_at_all_and_never_over_another(
    records: list[Record], tmp_path: Path
) -> None:
    def broken() -> Iterator[Record]:
        yield from records[:3]
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_shards(broken(), tmp_path / "shards")
    with pytest.raises(ValueError, match="no record that can be kept.*first of 1 rejects: why"):
        write_shards([Reject("too-long", "why")], tmp_path / "shards")
    assert not list(tmp_path.iterdir())
    (tmp_path / "shards").mkdir()
    write_shards(records[:2], tmp_path / "shards")
    assert oct((tmp_path / "shards").stat().st_mode)[-3:] == "755"
    with pytest.raises(ValueError, match="is there already, expected a new folder"):
        write_shards(records[:2], tmp_path / "shards")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


def test_a_missing_cut_or_changed_shard_is_named_at_the_start(copied: Path) -> None:
    shard = copied / "shard-00001.parquet"
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    shard.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match=r"shard-00001.parquet has sha256 .*a byte has changed, so copy it"):
        Corpus(copied)
    check_shards(copied, "sizes")
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.parquet has [\d,]+ bytes, the manifest says [\d,]+"):
        Corpus(copied, check="sizes")
    shard.unlink()
    with pytest.raises(
        ValueError, match=r"shard-00001.parquet is missing, expected a shard of .*copy it again"
    ):
        Corpus(copied)
    with pytest.raises(ValueError, match="check is 'md5', expected 'sha256' or 'sizes'"):
        check_shards(copied, "md5")  # type: ignore[arg-type]


def test_a_folder_without_a_manifest_that_can_be_read_is_refused(copied: Path) -> None:
    (copied / "manifest.json").write_text('{"format": "other 7"}')
    with pytest.raises(ValueError, match="has format 'other 7', expected 'unimedvl-shards 1'"):
        Corpus(copied)
    for content in ("{", "[1]"):
        (copied / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="manifest.json"):
            Corpus(copied)
    with pytest.raises(ValueError, match="has no manifest.json that can be read"):
        Corpus(copied / "nowhere")
    with pytest.raises(ValueError, match="got no folder"):
        Corpus()


def test_streams_hold_each_record_of_the_split_once_by_kind_task_and_modality(folder: Path) -> None:
    held = Corpus(folder)
    lessons = held.lessons()
    found = [
        (kind, stream.name, stream.label(i))  # type: ignore[misc]
        for kind, streams in lessons.items()
        for stream in streams
        for i in range(stream.length)
    ]
    assert sorted(name for _, _, name in found) == sorted(r.id for r in held)
    by_id = {r.id: r for r in held}
    assert all(by_id[i].kind == kind and name.startswith(by_id[i].sub_task_type) for kind, name, i in found)
    assert {stream.draws for stream in lessons["text-to-image"]} == {True}
    assert not any(held.lessons("val").values())


def test_splits_are_all_there_or_none(records: list[Record], tmp_path: Path) -> None:
    plain = [replace(r, split="") for r in records[:6]]
    write_shards(plain, tmp_path / "none")
    assert sum(s.length for each in Corpus(tmp_path / "none").lessons().values() for s in each) == 6
    write_shards([*plain[:3], *records[3:6]], tmp_path / "some")
    with pytest.raises(ValueError, match="3 records without a split among 6"):
        Corpus(tmp_path / "some").lessons()
    write_shards([replace(r, split="test") for r in records[:2]], tmp_path / "test")
    with pytest.raises(ValueError, match=r"no record of split 'train' \(splits: {'test': 2}\)"):
        Corpus(tmp_path / "test").lessons()


def test_two_folders_are_one_corpus_and_a_record_in_both_is_refused(
    folder: Path, records: list[Record], tmp_path: Path
) -> None:
    write_shards([replace(records[0], id="another")], tmp_path / "more")
    assert len(Corpus(folder, tmp_path / "more")) == len(records) + 1
    assert Corpus(folder, tmp_path / "more").digest != Corpus(folder).digest
    write_shards([records[5]], tmp_path / "same")
    with pytest.raises(ValueError, match=f"hold record {records[5].id} 2 times"):
        Corpus(folder, tmp_path / "same")


def test_an_epoch_is_every_record_once_near_its_neighbours_of_the_window(folder: Path) -> None:
    def order(window: int, seed: int = 0) -> tuple[list[int], list[int]]:
        held = Corpus(folder, check="sizes", window=window)
        source = _Source(held, torch.arange(len(held)))
        places = source.order(torch.Generator().manual_seed(seed))
        return places.tolist(), held._group_of(places).tolist()

    places, groups = order(1)
    assert sorted(places) == list(range(len(places))) and places != sorted(places)
    assert 2 < len(set(groups)) == 1 + sum(a != b for a, b in zip(groups, groups[1:], strict=False))
    wide, mixed = order(1000)
    assert sorted(wide) == sorted(places) and sum(a != b for a, b in zip(mixed, mixed[1:], strict=False)) > 8
    assert order(1000) == (wide, mixed) != order(1000, seed=1)


def mixture(held: Corpus, lanes: int = 2) -> Mixture:
    tokenizer = Tokenizer.train([m.value for r in held for m in r.message], 300)
    streams = [stream for each in held.lessons().values() for stream in each]
    return Mixture(streams, ToSegments(tokenizer, view=NANO_RULE, canvas=NANO_RULE), budget=600, lanes=lanes)


def test_shards_in_any_number_of_workers_are_the_same_records_in_the_same_order(folder: Path) -> None:
    held = Corpus(folder, window=2)
    alone = [p.origins for p in islice(PackLoader(mixture(held)), 12)]
    both = [p.origins for p in islice(PackLoader(mixture(held), num_workers=2), 12)]
    assert alone == both and len(set(sum(alone, []))) > 25


def _first(held: Corpus, queue: Any) -> None:
    queue.put((held[0].id, held._process == os.getpid()))


def test_a_corpus_can_be_sent_to_a_fresh_process(folder: Path) -> None:
    held = Corpus(folder)
    assert held[0].id and held._files
    state = held.__getstate__()
    assert not state["_files"] and not state["_tables"] and state["_process"] == -1
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_first, args=(held, queue))
    process.start()
    assert queue.get(timeout=30) == (held[0].id, True)  # with files of its own
    process.join()


def test_a_damaged_row_is_a_reject_of_the_mixture_and_not_the_end(
    records: list[Record], tmp_path: Path
) -> None:
    broken = replace(records[0].input_img[0], content=b"no picture")
    few = [replace(records[0], id="broken", input_img=(broken,)), *records[:5]]
    write_shards(few, tmp_path / "shards")
    packs = list(islice(PackLoader(mixture(Corpus(tmp_path / "shards"), 1)), 8))
    rejects = [reject for pack in packs for reject in pack.rejects]
    assert {reject.code for reject in rejects} == {"image-damaged"}
    assert {reject.id.split("/")[1] for reject in rejects} == {"broken"}
    assert {o.split("/")[1] for p in packs for o in p.origins} == {r.id for r in records[:5]}


def test_without_pyarrow_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"A shard needs pyarrow, .* pip install 'monai-unimedvl\[data\]'\."):
        Corpus(folder)
    assert corpus_module.parquet


def test_the_atlas_as_json_lines_is_the_atlas(records: list[Record], tmp_path: Path) -> None:
    from monai_unimedvl.data.record import write_jsonl

    write_jsonl(records, tmp_path / "a.jsonl")
    assert list(read_jsonl(tmp_path / "a.jsonl")) == records


def test_the_page_on_training_builds_shards_as_printed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "TRAINING.md").read_text("utf8")
    line = json.loads(page.split("```json\n")[1].split("```")[0])
    (tmp_path / "pictures" / "images").mkdir(parents=True)
    Image.new("L", (512, 512), 90).save(tmp_path / "pictures" / line["input_img"][0]["path"])
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n{}\n")
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "1 {'missing-field': 1}\n"
    assert Corpus("shards")[0].id == line["id"]
    settings, more = read_config(_written(tmp_path, page.split("```yaml\n")[1].split("```")[0]), MORE)
    assert settings.batch == 8 and more["data"] == ["shards"]


def _written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"
