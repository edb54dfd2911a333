# SPDX-License-Identifier: Apache-2.0
"""Readers on tiny made-up copies in the layouts of the publishers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl.evaluation.predictions import check
from monai_unimedvl.evaluation.protocols import protocol, score
from monai_unimedvl.evaluation.readers import BENCHMARKS, read_benchmark

pytest.importorskip("pyarrow")
from layouts import CASES, gmai, hub, lay, rad, slake  # noqa: E402


@pytest.mark.parametrize("case", CASES)
def test_a_benchmark_is_read_in_its_publishers_layout(case, tmp_path):
    make, number = CASES[case]
    make(tmp_path)
    name = case.split()[0]
    found = read_benchmark(name, tmp_path, items=number)
    assert len(found) == number and found.complete and found.missing == []
    rows = [item.prediction("x", benchmark=name, section=found.section) for item in found.items]
    check(rows)  # ids are unique, and every item has a truth
    first = found.items[0]
    *shown, words = first.prompt("!")
    assert isinstance(words, str) and words.endswith("!") and len(shown) == len(first.pictures)
    for image in shown:
        assert image.shape[0] == 3 and 0 <= float(image.min()) <= float(image.max()) <= 1
    if first.target is not None:
        assert first.target.tensor(first.modality or "mri").shape[0] == 3


def test_every_benchmark_has_a_tiny_copy_here():
    assert set(BENCHMARKS) == {case.split()[0] for case in CASES}


@pytest.mark.parametrize(
    "name", ["vqa-rad", "pathvqa", "slake", "omnimedvqa", "gmai-mmbench", "bci", "icg-cxr"]
)
def test_the_number_of_items_is_held_against_the_published_one(name, tmp_path):
    CASES[name][0](tmp_path)
    published = next(iter(BENCHMARKS[name].sections.values()))
    match = (
        "has md5 .*, published is 254bd"
        if name == "gmai-mmbench"
        else f"the {published:,} that are published"
    )
    with pytest.raises(ValueError, match=match):
        read_benchmark(name, tmp_path)
    part = read_benchmark(name, tmp_path, partial=True)
    assert not part.complete and part.published == published and f"{published:,} published" in str(part)


def test_embedded_pictures_are_read_from_their_own_place(tmp_path):
    rad(tmp_path)
    gmai(tmp_path / "gmai")
    items = read_benchmark("vqa-rad", tmp_path, items=3).items
    greys = [round(float(item.pictures[0].tensor().mean()) * 255) for item in items]
    assert greys == [10, 10, 20] and items[0].image == items[1].image != items[2].image
    first, second = read_benchmark("gmai-mmbench", tmp_path / "gmai", items=2).items
    assert [round(float(item.pictures[0].tensor().mean()) * 255) for item in (first, second)] == [7, 9]
    assert first.words == 'What is\nin the "box"?\nA. cyst\nB. mass' and first.question_type == "Counting"


@pytest.mark.parametrize(
    "case, file, match",
    [
        (
            "pathvqa",
            "data/test-00001-of-00003-abc.parquet",
            "lacks 1 files: test-00001-of-00003.parquet: get them from",
        ),
        ("slake", "imgs/xmlab1/source.jpg", "slake test lacks 1 files: imgs/xmlab1/source.jpg"),
        (
            "omnimedvqa",
            "QA_information/Open-access/set 7.json",
            "1 of the 42 files of QA_information/Open-access",
        ),
        ("omnimedvqa TSV", "part_17.tsv", "lacks 1 files: part_17.tsv"),
        ("gmai-mmbench", "GMAI-MMBench_VAL.tsv", "has none of"),
        ("medxpertqa-mm", "images/b.png", "lacks 1 files: images/b.png: get them from .*MedXpertQA"),
        ("text-to-image", "us/metadata.csv", "lacks 1 files: us/metadata.jsonl"),
        ("bci", "IHC/test/00001_test_3+.png", "lacks 1 files: IHC/test/00001"),
        ("ixi-sr4", "test/HQ/1.png", "lacks 1 files: test/HQ/1.png"),
        (
            "brats23",
            "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz",
            "lacks 1 files: BraTS-GLI-00001-000/",
        ),
        (
            "icg-cxr",
            "mimic_cxr/pa/1/p10/p10000032/i01s1-i02s2/i01s1-i02s2-flu-reg.png",
            "lacks 1 files: mimic_cxr",
        ),
        ("segmentation", "BUSI/masks/1.png", "lacks 1 files: BUSI/masks/1.png"),
        ("mimic-cxr", "images/p/2.png", "lacks 1 files: images/p/2.png"),
    ],
)
def test_a_missing_file_is_named(case, file, match, tmp_path):
    make, number = CASES[case]
    make(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=match):
        read_benchmark(case.split()[0], tmp_path, items=number)


@pytest.mark.parametrize(
    "name, file, content, match",
    [
        ("slake", "test.json", [{"qid": 1}], "test.json row 1 has no 'img_name', expected qid, img_name"),
        ("slake", "test.json", "{", "test.json is no JSON that can be read"),
        ("medxpertqa-mm", "MM/test.jsonl", "[1]\n", "test.jsonl row 1 has no mapping"),
        (
            "gmai-mmbench",
            "GMAI-MMBench_VAL.tsv",
            "index\timage\n",
            "has no column 'question', it has index, image",
        ),
        (
            "gmai-mmbench",
            "GMAI-MMBench_VAL.tsv",
            "index\timage\tquestion\tanswer\tA\tB\n1\t2\n",
            "line 2 has 2 cells, expected 6",
        ),
        (
            "gmai-mmbench",
            "GMAI-MMBench_VAL.tsv",
            'index\timage\tquestion\tanswer\tA\tB\n1\t"2\n',
            "ends within line 2",
        ),
        ("vqa-rad", "data/test-0.parquet", "PAR1", "test-0.parquet is no Parquet file that can be read"),
        ("mimic-cxr", "annotation.json", {"train": []}, "holds no list under 'test', expected R2Gen's form"),
        ("segmentation", "BUSI/labels.json", {"tumour": 0}, "BUSI/labels.json has .* expected a label"),
        (
            "text-to-image",
            "cxr/metadata.csv",
            "file,text\n1,2\n",
            "cxr/metadata.csv row 1 has no 'file_name'",
        ),
        ("icg-cxr", "a/i1-i2/i1-i2.json", {}, "i1-i2.json has no 'progression-description'"),
        ("icg-cxr", "readme.txt", "x", "has no PAIR/PAIR.json"),
        ("bci", "readme.txt", "x", "has none of HE/test: give the folder"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(name, file, content, match, tmp_path):
    lay(tmp_path / file, content)
    with pytest.raises(ValueError, match=match):
        read_benchmark(name, tmp_path, partial=True)


def test_names_folders_and_sections_are_checked(tmp_path):
    with pytest.raises(ValueError, match="benchmark is 'vqarad', expected one of vqa-rad, slake"):
        read_benchmark("vqarad", tmp_path)
    with pytest.raises(ValueError, match="section of slake is 'dev', expected one of test, validation"):
        read_benchmark("slake", tmp_path, section="dev")
    with pytest.raises(
        ValueError, match="none is no folder, expected that of slake: get it from huggingface"
    ):
        read_benchmark("slake", tmp_path / "none")
    with pytest.raises(ValueError, match="vqa-rad test lacks 1 files: data/test-"):
        hub(tmp_path / "data/train-00000-of-00001.parquet", [(1, "q", "a")])
        read_benchmark("vqa-rad", tmp_path, partial=True)


def test_a_broken_picture_is_named(tmp_path):
    slake(tmp_path)
    lay(tmp_path / "imgs/xmlab0/source.jpg", b"no picture")
    first = read_benchmark("slake", tmp_path, items=3).items[0]
    with pytest.raises(ValueError, match="source.jpg holds no picture that can be read"):
        first.prompt()
    (tmp_path / "imgs/xmlab0/source.jpg").unlink()
    with pytest.raises(ValueError, match="source.jpg holds no picture that can be read: get it again"):
        first.prompt()


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "F"])
def test_pictures_of_any_mode_become_rgb(mode, tmp_path):
    from monai_unimedvl.evaluation.readers import Picture

    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    path = tmp_path / "a.tiff"
    if mode == "RGBA":
        Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(path)
    else:
        made = values if mode == "F" else values.astype(np.uint16 if mode == "I;16" else np.uint8)
        Image.fromarray(made).save(path)
    found = Picture(path).tensor()
    assert found.shape == (3, 4, 6) and found.dtype == torch.float32
    if mode == "RGBA":
        assert float(found.min()) == 1.0  # transparent is white
    else:
        assert float(found[0, 3, 5]) > float(found[0, 0, 0])


def test_items_go_through_protocols(tmp_path):
    slake(tmp_path)
    items = read_benchmark("slake", tmp_path, items=3).items
    said = ["yes", "是的", "heart and lung"]
    rows = [i.prediction(a, benchmark="slake", section="test") for i, a in zip(items, said, strict=True)]
    assert score(rows, protocol("strict-v1")).hits == [1.0, 1.0, 1.0]
    assert score(rows, protocol("vila-m3")).hits == [1.0, None, 0.0]
