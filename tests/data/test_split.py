# SPDX-License-Identifier: Apache-2.0
"""No patient, study or picture is in two splits, and the report of leaks says where one is."""

from __future__ import annotations

import io
import zlib
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from monai_unimedvl.data.leaks import leak_report
from monai_unimedvl.data.prints import print_of, telling_prints
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject, pseudonym
from monai_unimedvl.data.split import Split
from monai_unimedvl.data.step import Tally

pytest.importorskip("imagehash", reason="fingerprints need the extra 'data'")


def picture(seed: int, **place: object) -> ImageFile:
    """A picture of its own for every seed."""
    grey = np.random.default_rng(seed).integers(0, 255, (12, 12), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).resize((24, 24), Image.Resampling.NEAREST).save(stream, "PNG")
    return ImageFile("a.png", 24, 24, place, stream.getvalue())


def record(name: str, patient: object = "", *, image: ImageFile | None = None, **more) -> Record:
    """A question about a picture."""
    fields = {"modality": "mri", "sub_task_type": "vqa", "dataset": "d", **more}
    return Record(
        id=name, main_task_type="image-to-text", licence="CC0-1.0", source="s",
        input_img=(image or picture(zlib.crc32(name.encode())),), message=(Message("gpt", "yes"),),
        patient=pseudonym("p", str(patient), "key") if patient != "" else "", **fields,
    )  # fmt: skip


def split(records: list[Record], **options) -> list[Record | Reject]:
    """The items in order; what goes in comes out."""
    tally = Tally()
    items = list(Split(**options)(records, tally))
    assert [item.id for item in items] == [each.id for each in records] and tally.taken == len(records)
    return items


def places(items: list[Record | Reject], key) -> dict[object, set[str]]:
    """key of a record -> the splits it is in."""
    found = defaultdict(set)
    for item in items:
        if isinstance(item, Record):
            found[key(item)].add(item.split)
    return found


def test_patients_stay_together_and_each_modality_is_shared_out_alike() -> None:
    records = [
        record(f"{modality}-{p}-{n}", f"{modality}{p}", image=picture(p * 10 + n), modality=modality)
        for modality in ("mri", "ct") for p in range(60) for n in range(1 + p % 3)
    ]  # fmt: skip
    records += [replace(records[0], id="other-patient", patient=pseudonym("p", "x", "key"))]  # same picture
    items = split(records)
    assert all(len(splits) == 1 for splits in places(items, lambda r: r.patient).values())
    assert items[0].split == items[-1].split
    for modality in ("mri", "ct"):
        counts = Counter(item.split for item in items if item.modality == modality)
        total = sum(counts.values())
        assert counts["train"] / total == pytest.approx(0.8, abs=0.05)
        assert counts["val"] / total == pytest.approx(0.1, abs=0.05)
    assert [i.split for i in split(records)] == [i.split for i in items]
    assert [i.split for i in split(records, seed=1)] != [i.split for i in items]
    assert leak_report(items).clean


def test_a_few_patients_fill_every_split() -> None:
    items = split([record(f"r{n}", f"p{n}") for n in range(3)])
    assert {item.split for item in items} == {"train", "val", "test"}
    assert {item.split for item in split([record("a", 1), record("b", 1)])} == {"train"}


def test_a_planted_patient_is_rejected_from_the_less_protected_split_and_reported() -> None:
    records = [record(f"r{n}", f"p{n}", image=picture(n), split="train") for n in range(5)]
    planted = record("planted", "p3", image=picture(77), split="test")
    again = record("again", "p9", image=picture(4), split="val")  # the picture of another's training record
    before = leak_report([*records, planted, again])
    assert before.shared == {"patient": 1, "study": 0, "picture": 1} and not before.clean
    assert {tuple(e["records"]) for e in before.examples} == {("planted", "r3"), ("r4", "again")}
    assert "a patient is in test and train: planted, r3" in "\n".join(before.lines())
    items = split([*records, planted, again])
    assert {i.id: i.code for i in items if isinstance(i, Reject)} == dict.fromkeys(
        ("r3", "r4"), "patient-across-splits"
    )
    assert leak_report(items).clean


def test_one_volume_is_cut_into_slabs_with_a_guard() -> None:
    def slice_at(mm: float, contrast: str) -> Record:
        image = picture(int(mm) + 500 * (contrast == "t2"), plane="axial", position_mm=[0.0, 3.0, mm])
        return record(f"{contrast}-{mm:g}", "one", image=image, dataset="atlas")

    records = [slice_at(2.0 * n, contrast) for contrast in ("t1", "t2") for n in range(50)]
    items = split(records, slabs=["atlas"], shares={"train": 0.7, "val": 0.1, "test": 0.2}, guard_mm=8)
    at = defaultdict(set)
    for item, given in zip(items, records, strict=True):
        mm = given.input_img[0].place["position_mm"][2]
        at["guard" if isinstance(item, Reject) else item.split].add(mm)
    assert all(isinstance(i, Record) or i.code == "slab-guard" for i in items)
    report = leak_report(items)
    assert report.clean and report.slabs == 1 and "Cut into slabs" in report.lines()[1]
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert min(abs(a - b) for a in at[one] for b in at[other]) >= 8
    assert max(at["val"]) < min(at["test"]) < max(at["train"]), "train is at both ends, so test is inside"
    assert all(max(at[name]) - min(at[name]) == 2 * (len(at[name]) - 1) for name in ("val", "test")), (
        "one run"
    )
    assert not at["train"] & at["test"], "the same slab is held out in both contrasts"
    numbered = [record(f"n{n}", "two", image=picture(n, index=n), dataset="atlas") for n in range(60)]
    found = [getattr(item, "split", "") for item in split(numbered, slabs=["atlas"])]
    runs = [(name, len(list(group))) for name, group in groupby(found)]
    assert runs == [
        ("train", 17),
        ("", 4),
        ("val", 2),
        ("", 4),
        ("train", 13),
        ("", 4),
        ("test", 2),
        ("", 4),
        ("train", 10),
    ]


def test_held_out_triplets_are_tested_and_never_trained_on() -> None:
    records = [
        record(f"{m}-{o}-{t}-{p}", p, modality=m, sub_task_type=t,
               facts={"organ": o})
        for m in ("ct", "mri") for o in ("liver", "brain") for t in ("vqa", "caption") for p in range(12)
    ]  # fmt: skip
    items = split(records, hold_out=["ct/liver/vqa"])
    mine = [i for i, r in zip(items, records, strict=True) if r.id.startswith("ct-liver-vqa")]
    kept = [i for i in mine if isinstance(i, Record)]
    assert kept and all(i.split == "test" and i.facts["held_out"] == "ct/liver/vqa" for i in kept)
    assert {i.code for i in mine if isinstance(i, Reject)} == {"held-out-triplet"}
    rest = [i for i, r in zip(items, records, strict=True) if not r.id.startswith("ct-liver-vqa")]
    assert all(isinstance(i, Record) for i in rest)
    chosen = {
        i.facts["held_out"]
        for i in split(records, hold_out_count=2)
        if isinstance(i, Record) and "held_out" in i.facts
    }
    assert len(chosen) == 2


def test_near_pictures_in_two_splits_are_measured() -> None:
    train = [record(f"r{n}", n, image=picture(n), split="train") for n in range(20)]
    far = [record(f"t{n}", 100 + n, image=picture(100 + n), split="test") for n in range(10)]
    (row,) = leak_report([*train, *far]).nearest
    assert row["n"] == 10 and row["max"] < 0.6 and row["share_near"] == 0
    grey = np.asarray(Image.open(io.BytesIO(train[7].input_img[0].content)))
    stream = io.BytesIO()
    Image.fromarray((grey * 0.9).astype(np.uint8)).save(stream, "PNG")
    near = replace(far[0], id="near", input_img=(ImageFile("b.png", 24, 24, content=stream.getvalue()),))
    (row,) = leak_report([*train, *far, near]).nearest
    assert (
        row["max"] > 0.99
        and row["pair"] == ["near", "r7"]
        and row["share_near"] == pytest.approx(1 / 11, abs=1e-3)
    )


@pytest.mark.parametrize(
    "options, said",
    [
        ({"shares": {"train": 1, "dev": 1}}, "expected numbers above 0 for some of train, val and test"),
        ({"shares": {"train": "0.8,test=0.2"}}, "expected numbers above 0 for some of train, val and test"),
        ({"shares": {"train": 0.8, "test": 0.3}}, "shares that add up to 1.1, expected 1"),
        ({"stratify": ["age"]}, "stratify 'age', expected some of"),
        ({"hold_out": ["ct"]}, "expected modality/anatomy/task"),
        ({"guard_mm": -1}, "guard_mm -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Split(**options)


def test_masks_and_blank_pictures_say_nothing_of_whose_they_are() -> None:
    def stored(values: np.ndarray) -> ImageFile:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        return ImageFile("m.png", 24, 24, {}, stream.getvalue())

    mask = np.zeros((24, 24), np.uint8)
    mask[4:9, 4:9] = 255
    blank = stored(np.full((24, 24), 7, np.uint8))
    assert telling_prints(record("blank", image=blank)) == []
    assert len(telling_prints(record("shown", image=stored(mask)))) == 1, "what is shown is no drawn mask"
    colours = np.zeros((3, 1, 33), np.float32)
    colours[2] = np.arange(33) / 32
    assert print_of(colours[..., :32]).drawn and not print_of(colours).drawn, (
        "up to 32 colours, blue ones too"
    )


def test_what_is_drawn_holds_records_together_but_masks_do_not() -> None:
    def edit(name: str, shown: ImageFile, drawn: ImageFile) -> Record:
        return replace(record(name, image=shown), output_img=(drawn,), main_task_type="interleaved")

    mask = np.zeros((24, 24), np.uint8)
    mask[4:9, 4:9] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    drawn = ImageFile("m.png", 24, 24, {}, stream.getvalue())
    both = [(n, k) for n in range(20) for k in (0, 1)]
    chains = [edit(f"{n}-{k}", picture(10 * n + k), picture(10 * n + k + 1)) for n, k in both]
    masks = [edit(f"mask{n}", picture(1000 + n), drawn) for n in range(20)]
    items = split([*chains, *masks], shares={"train": 0.5, "test": 0.5})
    assert all(len(found) == 1 for found in places(items[:40], lambda each: each.id.split("-")[0]).values())
    assert places(items[40:], lambda each: "")[""] == {"train", "test"}, "equal masks are of many patients"
    assert leak_report(items).clean
    torn = [replace(each, split=("train", "test")[n % 2]) for n, each in enumerate(chains)]
    assert leak_report(torn).shared["picture"] == 20
    given = split([replace(chains[0], split="test"), chains[1]])
    assert given[1].split == "test"  # type: ignore[union-attr]
