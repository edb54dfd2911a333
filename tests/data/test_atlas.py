# SPDX-License-Identifier: Apache-2.0
"""Laws of the atlas corpus: honest splits, the same items every time, patients the right way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nilearn", reason="the atlas corpus starts from nilearn's ICBM152 maps")
pytest.importorskip("skimage", reason="the atlas corpus needs scikit-image")

from monai_unimedvl.data import atlas  # noqa: E402
from monai_unimedvl.data.atlas_regions import LEVELS  # noqa: E402
from monai_unimedvl.data.atlas_splits import section_of_slab  # noqa: E402
from monai_unimedvl.data.atlas_tasks import degrade  # noqa: E402
from monai_unimedvl.data.atlas_volumes import GRID_ORIGIN, display, prepare_arrays, read_arrays, shrink  # noqa: E402
from monai_unimedvl.data.fetch import default_root, sources  # noqa: E402

FROZEN = Path(__file__).parents[1] / "items" / "atlas-v1.jsonl"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The sections from installed packages alone: nothing has been fetched."""
    root = tmp_path_factory.mktemp("empty")
    return {section: atlas.AtlasDataset(root, section, progress=False) for section in atlas.SECTIONS}


@pytest.fixture(scope="module")
def fetched():
    """The sections from the user's cache."""
    absent = [s.name for s in sources() if not (default_root() / s.folder / "DONE").is_file()]
    if absent:
        pytest.skip(f"not fetched: {', '.join(absent)}; run `unimedvl data fetch-atlas`")
    return {section: atlas.AtlasDataset(section=section, progress=False) for section in atlas.SECTIONS}


def arrays_or_skip(name: str):
    source = next(s for s in sources() if s.name == name)
    if not (default_root() / source.folder / "DONE").is_file():
        pytest.skip(f"{name} is not fetched; run `unimedvl data fetch-atlas`")
    return read_arrays(prepare_arrays(default_root())[0])


def test_absent_sources_are_named_and_the_rest_is_there(installed):
    assert "mricron-data" in installed["train"].missing
    assert {"vqa", "caption", "seg-tissue", "t1-to-gm", "sr4", "h-to-ihc"} <= set(installed["train"].counts())
    assert "t1-to-t2" not in installed["train"].counts()


def test_an_item_is_a_dialogue_with_images_in_range(installed):
    train = installed["train"]
    for index in np.linspace(0, len(train) - 1, 40).astype(int):
        item = train[index]
        user, assistant = item["turns"]
        assert (user.role, assistant.role) == ("user", "assistant")
        for image in [
            part for turn in item["turns"] for part in turn.parts if isinstance(part, torch.Tensor)
        ]:
            assert image.shape == (3, 64, 64) and image.dtype == torch.float32
            assert 0 <= image.min() and image.max() <= 1
        assert (item["kind"] == "text") == isinstance(assistant.parts[0], str)


def test_same_seed_gives_same_items_and_another_seed_other_words(installed, tmp_path):
    again = atlas.AtlasDataset(tmp_path, "train", progress=False)
    other = atlas.AtlasDataset(tmp_path, "train", seed=1, progress=False)
    assert atlas.item_rows(again) == atlas.item_rows(installed["train"])
    assert [e.id for e in other.entries] == [e.id for e in again.entries]
    assert [e.words for e in other.entries] != [e.words for e in again.entries]


def test_the_cached_grid_gives_what_building_gives(installed, tmp_path):
    built, _ = prepare_arrays(tmp_path)
    before = built.stat().st_mtime_ns
    data = atlas.AtlasDataset(tmp_path, "test", progress=False)
    assert atlas.item_rows(data) == atlas.item_rows(installed["test"])
    assert built.stat().st_mtime_ns == before


def test_words_of_test_sections_do_not_depend_on_the_seed(installed, tmp_path):
    other = atlas.AtlasDataset(tmp_path, "test", seed=7, progress=False)
    assert atlas.item_rows(other) == atlas.item_rows(installed["test"])


@pytest.mark.parametrize("which", ["installed", "fetched"])
def test_no_picture_and_no_test_subject_is_in_two_sections(which, request):
    sections = request.getfixturevalue(which)
    ids = {name: {e.picture.id for e in data.entries} for name, data in sections.items()}
    for a in ids:
        for b in ids:
            assert a == b or not ids[a] & ids[b]
    subjects = {e.picture.subject for e in sections["test_subject"].entries}
    known = {e.picture.subject for name in ("train", "val", "test") for e in sections[name].entries}
    assert not subjects & known


@pytest.mark.parametrize("which", ["installed", "fetched"])
def test_training_slices_keep_three_slices_away_from_every_held_out_slab(which, request):
    sections = request.getfixturevalue(which)

    def places(*names):
        return {
            (p.plane, p.facts["mm"])
            for n in names
            for e in sections[n].entries
            if "mm" in (p := e.picture).facts
        }

    held = places("val", "test")
    assert held
    for plane, place in places("train"):
        assert min(abs(place - other) for there, other in held if there == plane) > 6


def test_a_slab_is_held_out_in_every_contrast(fetched):
    by_place: dict = {}
    for name in ("train", "val", "test"):
        for entry in fetched[name].entries:
            picture = entry.picture
            if "mm" in picture.facts:
                by_place.setdefault((picture.plane, picture.facts["mm"]), set()).add(name)
    assert all(len(names) == 1 for names in by_place.values())


def test_patches_of_different_sections_do_not_overlap(fetched):
    spans: dict = {}
    for name in ("train", "val", "test"):
        for entry in fetched[name].entries:
            picture = entry.picture
            if picture.plane == "":
                width = 128 if picture.source == "nuclei" else 64
                spans.setdefault(picture.source, {}).setdefault(name, set()).update(
                    range(int(picture.position), int(picture.position) + width)
                )
    assert len(spans) >= 4
    for columns in spans.values():
        names = list(columns)
        for i, a in enumerate(names):
            assert all(not columns[a] & columns[b] for b in names[i + 1 :])


def test_the_slab_rule():
    assert section_of_slab(35, 0, 100, 1) == "val" and section_of_slab(70, 0, 100, 1) == "test"
    assert section_of_slab(28, 0, 100, 1) is None and section_of_slab(77, 0, 100, 1) is None
    assert section_of_slab(26, 0, 100, 1) == "train" and section_of_slab(78, 0, 100, 1) == "train"


def test_left_of_the_patient_is_on_the_right_of_the_picture():
    aal = arrays_or_skip("mricron-data")["mni/aal"]
    precentral_left, calcarine_left = 1, 43
    for plane in ("axial", "coronal"):
        columns = np.nonzero(display(aal == precentral_left, plane).any(0))[1]
        assert columns.min() >= 47  # of 96
    rows = np.nonzero(display(aal == calcarine_left, "axial").any(0))[0]
    assert rows.mean() > 60  # the back of the head is at the bottom
    assert (
        np.nonzero(display(aal == calcarine_left, "sagittal").any(0))[1].mean() > 60
    )  # and on the right, seen from the side


def test_colin27_labels_lie_on_colin27():
    arrays = arrays_or_skip("mricron-data")
    brain = arrays["mni/ch2bet"] > 25
    labelled = arrays["mni/aal"] > 0
    assert (brain & labelled).sum() / labelled.sum() > 0.92


def test_tumours_are_on_the_side_that_is_told(fetched):
    for name in ("train", "test_subject"):
        asked = [e for e in fetched[name].entries if e.question == "side"]
        assert asked
        for entry in asked:
            columns = np.nonzero(entry.picture.maps["seg-tumour"])[1]
            assert entry.answer == ("left" if columns.mean() > 31.5 else "right")
        # measured by hand: the first brain patient's tumour is in the left hemisphere
    brain1 = [
        e
        for e in fetched["train"].entries
        if e.question == "side" and e.picture.source == "brain1" and not e.picture.facts["mirrored"]
    ]
    assert {e.answer for e in brain1} == {"left"}


def test_a_degraded_image_is_not_shifted(installed):
    for entry in [
        e for e in installed["train"].entries if e.task == "sr4" and e.picture.source in ("icbm09a", "ihc")
    ][::40]:
        truth, poor = entry.targets[0].astype(float), entry.shown.astype(float)
        for axis in (0, 1):
            errors = [((np.roll(poor, step, axis) - truth) ** 2).mean() for step in (-1, 0, 1)]
            assert errors[1] == min(errors)


def test_losing_resolution_keeps_the_mean():
    pixels = np.random.default_rng(0).integers(60, 200, (64, 64)).astype(np.uint8)
    for fourier in (True, False):
        assert abs(degrade(pixels, fourier=fourier).mean() - pixels.mean()) < 0.7


def test_shrinking_is_an_area_average():
    image = np.arange(96 * 96, dtype=float).reshape(1, 96, 96)
    assert shrink(image).mean() == pytest.approx(image.mean())
    assert shrink(image)[0, 0, 0] == pytest.approx((0 + 0.5 * 1 + 0.5 * 96 + 0.25 * 97) / 2.25)


def test_balanced_yes_and_no_are_equally_frequent(fetched):
    for name in ("test", "test_subject"):
        counts: dict = {}
        for entry in fetched[name].entries:
            if entry.balanced:
                counts.setdefault(entry.question, {}).setdefault(entry.answer, 0)
                counts[entry.question][entry.answer] += 1
        yes_no = [answers for answers in counts.values() if set(answers) <= {"yes", "no"}]
        assert len(yes_no) >= 10 and all(answers["yes"] == answers["no"] for answers in yes_no)


def test_the_blind_baseline_is_half_on_balanced_yes_or_no(fetched):
    scores = atlas.blind_baseline(fetched["train"], fetched["test"])
    assert scores["region: putamen"] == 0.5
    assert 0.3 < scores["all"] < 0.5 and scores["n"] > 1000


def test_no_test_picture_of_a_slab_is_a_training_picture(fetched):
    report = atlas.leak_report(fetched["train"], fetched["test"])
    assert report["seg-tissue"]["share_above_0.98"] == 0
    assert report["caption"]["share_above_0.98"] < 0.05  # smooth PET and SPECT averages


def test_a_dialogue_asks_every_question_about_one_image_once(installed):
    train = installed["train"]
    found = atlas.dialogues(train, seed=3)
    assert sum(len(turns) // 2 for turns in found) == train.counts()["vqa"]
    for turns in found[:20]:
        images = [part for turn in turns for part in turn.parts if isinstance(part, torch.Tensor)]
        assert len(images) == 1 and turns[0].parts[0] is images[0]
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)


def test_permissive_only_reads_no_gpl_source(fetched):
    data = atlas.AtlasDataset(permissive_only=True, progress=False)
    assert not {e.picture.source for e in data.entries} & {
        "avg152T1",
        "avg152T2",
        "avg152PD",
        "spmEPI",
        "spmPET",
        "spmSPECT",
        "headct_soft",
        "headct_bone",
    }
    assert all("GPL" not in licence for _, _, licence, _ in atlas.licences(permissive_only=True))
    assert any("GPL" in licence for _, _, licence, _ in atlas.licences())


def test_a_transform_gets_the_item(installed, tmp_path):
    data = atlas.AtlasDataset(
        tmp_path, "val", tasks=["caption"], transform=lambda item: item["truth"], progress=False
    )
    assert data[0].startswith("Axial T1 MRI at the level of")


def test_levels_end_beyond_the_head():
    assert all(
        edges[-1][0] == 99 and sorted(edge for edge, _ in edges) == [edge for edge, _ in edges]
        for edges in LEVELS.values()
    )
    assert GRID_ORIGIN == (-90.0, -126.0, -72.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"section": "training"}, "got section 'training', expected one of train, val"),
        ({"tasks": ["seg-heart"]}, "got task 'seg-heart', expected some of vqa"),
        ({"cache_rate": 2.0}, "got cache_rate 2.0, expected a share"),
    ],
)
def test_wrong_arguments_are_told(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        atlas.AtlasDataset(tmp_path, progress=False, **arguments)


def test_frozen_items_are_rebuilt_from_the_sources(fetched):
    """The list of version 1 never changes: whoever changes the corpus writes a version 2 beside it."""
    rebuilt = {row["id"]: row for name in ("test", "test_subject") for row in atlas.item_rows(fetched[name])}
    frozen = atlas.read_items(FROZEN)
    assert len(frozen) > 5000
    assert [row["id"] for row in frozen if rebuilt.get(row["id"]) != row] == []


def test_frozen_items_of_installed_packages_are_rebuilt_without_a_download(installed):
    """Image hashes of nilearn and scikit-image pictures hold on a machine that fetched nothing."""
    frozen = {row["id"]: row for row in atlas.read_items(FROZEN)}
    rows = [
        row for row in atlas.item_rows(installed["test"]) if row["task"] in ("sr4", "t1-to-gm", "h-to-ihc")
    ]
    assert rows and all(frozen[row["id"]] == row for row in rows)


def test_a_slice_group_is_three_neighbours_of_one_volume_and_section(installed, tmp_path):
    data = atlas.AtlasDataset(tmp_path, "train", tasks=["slice-group"], progress=False)
    places = {e.picture.position for e in data.entries if e.picture.plane == "axial"}
    assert len(data) > 50 and len(data[0]["turns"][1].parts) == 3
    known = {
        e.picture.position
        for e in installed["train"].entries
        if e.picture.plane == "axial" and e.picture.source == "icbm09a"
    }
    assert all({place - 4, place, place + 4} <= known for place in places)


def test_a_contact_sheet_shows_items_and_names_what_there_is(installed, tmp_path):
    from PIL import Image

    sheet = atlas.contact_sheet(installed["test"], tmp_path / "sheet.png", task="t1-to-gm", count=3)
    assert Image.open(sheet).size == (64 * 2 * 3 + 520, (64 * 2 + 4) * 3)
    with pytest.raises(
        ValueError, match="found no item of task 'seg-tumour' in section 'test': choose one of"
    ):
        atlas.contact_sheet(installed["test"], tmp_path / "none.png", task="seg-tumour")


def test_one_level_of_held_out_slices_is_never_trained_on_as_the_nanos_page_says(fetched):
    def levels(section: str) -> set[str]:
        found = (p for p in fetched[section].pictures if p.section == section and p.plane == "axial")
        return {str(p.facts["level"]) for p in found if "level" in p.facts}

    assert levels("test") - levels("train") == {"the centrum semiovale"}
