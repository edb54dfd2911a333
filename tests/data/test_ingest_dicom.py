# SPDX-License-Identifier: Apache-2.0
"""DICOM folders as records: series told apart, slices with their place, and nobody's name anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import PLANTED, dicom, planted_words, series

from monai_unimedvl.cli import main
from monai_unimedvl.data.ingest.dicom import IngestDicom
from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Tally


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The site's secret."""
    monkeypatch.setenv("UNIMEDVL_SECRET", "tests")


def read(folder: Path, root: Path, **options: object) -> tuple[list[Record], list[Reject], Tally]:
    tally = Tally()
    items = list(IngestDicom(path=str(folder), root=str(root), dataset="d", **options)((), tally))
    records = [item for item in items if isinstance(item, Record)]
    return records, [item for item in items if isinstance(item, Reject)], tally


def test_series_are_told_apart_by_uid_and_slices_keep_their_place(tmp_path: Path) -> None:
    for name in ("a", "b"):  # two series, their files mixed in one folder
        series(tmp_path / name, 4)
        for path in sorted((tmp_path / name).iterdir()):
            path.rename(tmp_path / f"{path.name}-{name}")
        (tmp_path / name).rmdir()
    records, rejects, tally = read(tmp_path, tmp_path / "corpus", slices=2)
    assert not rejects and tally.taken == tally.kept == 2 and len(records) == 4
    first = records[0]
    place = first.input_img[0].place
    assert (
        first.modality == "mri" and first.facts["organ"] == "brain" and first.facts["patient_left"] == "right"
    )
    assert place["plane"] == "axial" and place["count"] == 4 and place["policy"] == "uniform"
    assert [record.input_img[0].place["position_mm"][2] for record in records[:2]] == [5.0, 15.0]
    assert place["spacing_mm"] == [5.0, 5.0]
    with Image.open(tmp_path / "corpus" / first.input_img[0].path) as picture:
        assert picture.size == (32, 32) and np.array(picture).max() > 90
    assert len({record.patient for record in records}) == 1  # the same PatientID
    assert len({record.study for record in records}) == 2


def test_the_same_folder_gives_the_same_records_under_the_same_secret(tmp_path: Path, monkeypatch) -> None:
    series(tmp_path / "a", 3)
    once, _, _ = read(tmp_path / "a", tmp_path / "one")
    twice, _, _ = read(tmp_path / "a", tmp_path / "two")
    assert once == twice
    monkeypatch.setenv("UNIMEDVL_SECRET", "another")
    other, _, _ = read(tmp_path / "a", tmp_path / "three")
    assert other[0].patient != once[0].patient and other[0].id != once[0].id


def test_without_a_secret_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "a", 3)
    monkeypatch.delenv("UNIMEDVL_SECRET")
    with pytest.raises(ValueError, match="no secret for the pseudonyms.*UNIMEDVL_SECRET"):
        read(tmp_path / "a", tmp_path / "out")


def test_no_identifier_of_thirty_tags_is_found_in_any_output(tmp_path: Path, capsys, caplog) -> None:
    assert len(PLANTED) + 3 >= 30
    folder = tmp_path / "Quasimodo_Esmeralda"  # and in the names of folder and files
    series(folder / "PID-4711-0815", 3)
    dicom(folder / "us" / "Quasimodo.dcm", Modality="US")
    broken = dicom(folder / "broken" / "Frollo.dcm")
    broken.write_bytes(broken.read_bytes()[:1900])
    dicom(folder / "odd" / "Frollo2.dcm", Modality="SR")
    out = tmp_path / "corpus"
    code = main(["data", "ingest", "dicom", str(folder), "--out", str(out), "--dataset", "d"])
    said = capsys.readouterr()
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert code == 0 and len(written) > 5
    everything = said.out + said.err + caplog.text + " ".join(str(path.relative_to(out)) for path in written)
    assert "records" in everything
    for word in planted_words():
        assert word not in everything, word
        for path, content in written.items():
            assert word.encode() not in content, (word, path.name)
    rejects = [json.loads(line) for line in (out / "records.rejects.jsonl").read_text().splitlines()]
    assert {reject["code"] for reject in rejects} >= {"modality-unknown"} and len(rejects) == 2
    assert all(" of 6 by name" in reject["place"] for reject in rejects)


@pytest.mark.parametrize(
    "tags, said",
    [({"BurnedInAnnotation": "YES"}, "yes"), ({"BurnedInAnnotation": "NO", "Modality": "US"}, "no"),
     ({"Modality": "US"}, "possible"), ({}, "no"), ({"ImageType": ["DERIVED", "SECONDARY"]}, "possible")],
)  # fmt: skip
def test_text_in_the_pixels_is_flagged_and_refused_where_asked(tmp_path: Path, tags, said) -> None:
    dicom(tmp_path / "in" / "a.dcm", **tags)
    kept, _, _ = read(tmp_path / "in", tmp_path / "out", modality="xray")
    assert kept[0].facts["burned_in"] == said
    kept, rejects, _ = read(tmp_path / "in", tmp_path / "out", modality="xray", burned_in="reject")
    assert bool(kept) == (said == "no") and [r.code for r in rejects] == ([] if kept else ["burned-in"])


def test_a_gap_a_scout_and_a_second_echo_are_rejects_and_the_rest_goes_on(tmp_path: Path) -> None:
    series(tmp_path / "in" / "whole", 3)
    gap = series(tmp_path / "in" / "gap", 3)
    dicom(tmp_path / "in" / "gap" / "x", number=9, series=gap)
    scout = series(tmp_path / "in" / "scout", 3)
    wide = np.zeros((16, 64), np.uint16)
    dicom(tmp_path / "in" / "scout" / "x", series=scout, Rows=16, Columns=64, values=wide)
    echo = series(tmp_path / "in" / "echo", 3)
    dicom(tmp_path / "in" / "echo" / "x", number=1, series=echo)
    records, rejects, tally = read(tmp_path / "in", tmp_path / "out")
    assert {reject.code for reject in rejects} == {"slices-missing", "series-mixed", "series-overlap"}
    assert len(records) == 3 and (tally.taken, tally.kept, tally.rejected) == (4, 1, 3)
    assert str(tmp_path) not in " ".join(reject.reason for reject in rejects)


def test_the_file_at_fault_in_a_series_is_not_named(tmp_path: Path) -> None:
    uid = series(tmp_path / "in", 3)
    cut = dicom(tmp_path / "in" / "MUELLER_HANS.dcm", number=3, series=uid)
    cut.write_bytes(cut.read_bytes()[:-700])
    records, rejects, _ = read(tmp_path / "in", tmp_path / "out")
    assert not records and len(rejects) == 1 and "cannot be read" in rejects[0].reason
    assert "MUELLER" not in str(rejects[0]) and "IM0" not in str(rejects[0])


def test_a_wrong_option_or_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    dicom(tmp_path / "in" / "a.dcm")
    (tmp_path / "none").mkdir()
    for options, message in [
        ({"burned_in": "blank"}, "burned_in is 'blank'"), ({"modality": "xmri"}, "xmri"),
        ({"settings": {"window": "heart"}, "modality": "ct"}, "heart"),
        ({"identifiers": "hide"}, "identifiers is"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "in", tmp_path / "out", **options)
    with pytest.raises(ValueError, match="holds no DICOM file"):
        read(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "absent", tmp_path / "out")
