# SPDX-License-Identifier: Apache-2.0
"""Ninety kinds of damaged input: each is a reject with its code, or kept as it should be; the run goes on.

A case lies beside something healthy of its kind. What is asked of all: the healthy one is kept, the damaged
one has the stated code, no reason holds a path, a traceback or two lines, and in = kept + rejected.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import (
    DEEP,
    GOOD_REPORT,
    LAUGHS,
    PLACED,
    Made,
    boxed,
    coco,
    cut,
    endless,
    holed,
    lied,
    line,
    masked,
    nrrd,
    paired,
    patched,
    picture,
    png_of,
    row,
    said,
    slice_,
    squeezed,
    stack,
    table,
    volume,
    written,
)
from PIL import Image
from pydicom.uid import generate_uid
from sources import dicom, nifti, png, series

from monai_unimedvl.data import record, step
from monai_unimedvl.data.facts import FACTS
from monai_unimedvl.data.ingest import words
from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Source, Tally, make

KNOWN = {**record.CODES, **step.CODES, **words.CODES}
KEPT = ""  # not damaged after all: it is to be read


# name: (source, what is damaged, code)
DAMAGED: dict[str, tuple[str, Made, str]] = {
    # DICOM
    "dicom: pixels cut short": ("dicom", cut(dicom, "bad.dcm", 0.6), "image-damaged"),
    "dicom: header cut short": ("dicom", cut(dicom, "bad.dcm", 0.08), "image-damaged"),
    "dicom: wrong magic": ("dicom", written("bad.dcm", b"MZ" + bytes(range(256)) * 9), "image-damaged"),
    "dicom: text with its suffix": ("dicom", written("bad.dcm", "this is a letter\n" * 30), "image-damaged"),
    "dicom: 0 bytes": ("dicom", written("bad.dcm", b""), "empty-file"),
    "dicom: no pixels": ("dicom", slice_(PixelData=None), "no-pixels"),
    "dicom: no rows": ("dicom", slice_(Rows=0), "image-damaged"),
    "dicom: a structured report": ("dicom", slice_(Modality="SR"), "modality-unknown"),
    "dicom: no modality": ("dicom", slice_(Modality=None), "modality-unknown"),
    "dicom: header says 60000 x 60000": ("dicom", lied, "too-large"),
    "dicom: broken compressed frames": ("dicom", squeezed, "image-damaged"),
    "dicom: fewer pixels than stated": ("dicom", slice_(Rows=64), "image-damaged"),
    "dicom: series with a gap": ("dicom", stack(number=9), "slices-missing"),
    "dicom: two echoes in one series": ("dicom", stack(number=1), "series-overlap"),
    "dicom: a scout in the series": (
        "dicom",
        stack(Rows=16, Columns=64, values=np.zeros((16, 64), np.uint16)),
        "series-mixed",
    ),
    "dicom: a tilted slice in the series": (
        "dicom",
        stack(number=3, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        "series-mixed",
    ),
    "dicom: no place in space": (
        "dicom",
        slice_(ImagePositionPatient=None, ImageOrientationPatient=None),
        KEPT,
    ),
    "dicom: no series UID": ("dicom", slice_(SeriesInstanceUID=None), KEPT),
    # NIfTI
    "nifti: cut short": ("nifti", cut(nifti, "bad.nii", 0.5), "image-damaged"),
    "nifti: gzip cut short": ("nifti", cut(nifti, "bad.nii.gz", 0.5), "image-damaged"),
    "nifti: no gzip": ("nifti", written("bad.nii.gz", "plain words"), "image-damaged"),
    "nifti: gzip of something else": (
        "nifti",
        written("bad.nii.gz", gzip.compress(b"words" * 99)),
        "image-damaged",
    ),
    "nifti: 0 bytes": ("nifti", written("bad.nii", b""), "empty-file"),
    "nifti: NaN": ("nifti", volume(holed()), "not-finite"),
    "nifti: Inf": ("nifti", volume(endless()), "not-finite"),
    "nifti: no slices": ("nifti", patched(40, struct.pack("<8h", 3, 30, 40, 0, 1, 1, 1, 1)), "too-large"),
    "nifti: header says 30000 a side": (
        "nifti",
        patched(40, struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)),
        "too-large",
    ),
    "nifti: four dimensions": ("nifti", volume(np.zeros((30, 40, 20, 3), np.float32)), "wrong-dimensions"),
    "nifti: affine of zeros": ("nifti", patched(280, struct.pack("<4f", 0, 0, 0, 0)), "bad-affine"),
    "nifti: affine of NaN": ("nifti", patched(280, struct.pack("<4f", *[float("nan")] * 4)), "bad-affine"),
    "nrrd: no NRRD": ("nifti", written("bad.nrrd", "plain words"), "image-damaged"),
    "nrrd: cut short": ("nifti", nrrd(values=bytes(100)), "image-damaged"),
    "nrrd: 0 bytes": ("nifti", written("bad.nrrd", b""), "empty-file"),
    "nrrd: terabytes by its header": ("nifti", nrrd(sizes="30000 40000 20000"), "too-large"),
    "nrrd: a bomb": ("nifti", nrrd(encoding="gzip", values=gzip.compress(bytes(2_000_000))), "too-large"),
    "nrrd: values in another file": ("nifti", nrrd(more="data file: /etc/hostname\n"), "path-outside"),
    "nrrd: two layers": (
        "nifti",
        nrrd(dimension=4, sizes="2 15 20 20", kinds="list domain domain domain", directions="none " + PLACED),
        "wrong-dimensions",
    ),
    "nrrd: a flat place": ("nifti", nrrd(directions="(1,0,0) (0,1,0) (0,2,0)"), "bad-affine"),
    "nifti: slices of 4 x 4": ("nifti", volume(np.ones((4, 4, 4), np.float32)), "too-small"),
    "nifti: unknown number format": ("nifti", patched(70, struct.pack("<h", 9999)), "image-damaged"),
    # pictures
    "png: cut short": ("images", cut(png, "bad.png", 0.4), "image-damaged"),
    "png: words": ("images", written("bad.png", "this is no picture"), "image-damaged"),
    "png: 0 bytes": ("images", written("bad.png", b""), "empty-file"),
    "png: bomb of 20000 x 20000": ("images", written("bad.png", png_of(20_000, 20_000)), "too-large"),
    "png: bomb of 60000 x 60000": ("images", written("bad.png", png_of(60_000, 60_000)), "too-large"),
    "png: 1 x 1": ("images", picture("bad.png", value=np.zeros((1, 1), np.uint8)), "too-small"),
    "png: wrong checksum": (
        "images",
        lambda folder: png(folder / "bad.png").write_bytes(
            png(folder / "bad.png").read_bytes().replace(b"IDAT", b"IDAX")
        ),
        "image-damaged",
    ),
    "png: 16 bits": (
        "images",
        picture("bad.png", value=np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30),
        KEPT,
    ),
    "png: palette": ("images", picture("bad.png", "P"), KEPT),
    "jpeg: CMYK": ("images", picture("bad.jpg", "CMYK"), KEPT),
    "jpeg: cut short": (
        "images",
        cut(lambda p: (picture(p.name)(p.parent), p)[1], "bad.jpg", 0.5),
        "image-damaged",
    ),
    "gif: moving": (
        "images",
        picture("bad.gif", "P", save_all=True, append_images=[Image.new("P", (48, 40), 3)]),
        KEPT,
    ),
    "tiff: NaN": ("images", picture("bad.tif", value=np.full((40, 48), np.nan, np.float32)), "not-finite"),
    "tiff: words": ("images", written("bad.tif", "II*\0 no tiff at all"), "image-damaged"),
    "npy: five channels": (
        "images",
        lambda folder: np.save(folder / "bad.npy", np.zeros((5, 32, 32), np.float32)),
        "wrong-channels",
    ),
    "npy: objects, which would run code": (
        "images",
        lambda folder: np.save(folder / "bad.npy", np.array([{"a": 1}]), allow_pickle=True),
        "image-damaged",
    ),
    "a text among pictures": ("images", written("bad.txt", "read me"), "not-an-image"),
    "an archive among pictures": ("images", written("bad.zip", b"PK\x03\x04"), "not-an-image"),
    # tables
    "csv: path outside": ("table", table("../../etc/passwd,mass,3,x"), "path-outside"),
    "csv: absolute path": ("table", table("/etc/passwd,mass,3,x"), "path-outside"),
    "csv: image not there": ("table", table("none.png,mass,3,x"), "image-missing"),
    "csv: no image": ("table", table(",mass,3,x"), "image-missing"),
    "csv: a cell too many": ("table", table("good.png,mass,3,x,y"), "bad-row"),
    "csv: a quote left open": ("table", table('good.png,"mass,3,x'), "bad-row"),
    "csv: broken UTF-8": ("table", table(b"good.png,m\xff\xfess,3,x"), "bad-encoding"),
    "csv: NUL": ("table", table(b"good.png,mass,3,x\0y"), "bad-encoding"),
    "csv: a size that is no number": ("table", table("good.png,mass,large,x"), "bad-label"),
    "csv: infinite size": ("table", table("good.png,mass,inf,x"), "bad-label"),
    "csv: nothing said": ("table", table("good.png,,,"), "no-label"),
    "csv: caption of 10 MB": ("table", table("good.png,mass,3," + "x" * 10_000_000), "text-too-long"),
    # JSON lines
    "jsonl: no JSON": ("conversations", line('{"image": '), "bad-json"),
    "jsonl: a list": ("conversations", line("[1, 2]"), "bad-row"),
    "jsonl: nested 100000 deep": ("conversations", line(DEEP), "bad-json"),
    "jsonl: broken UTF-8": ("conversations", line(b'{"image": "\xff"}'), "bad-encoding"),
    "jsonl: no turns": ("conversations", row(conversations=[]), "empty-text"),
    "jsonl: no answer": ("conversations", row(**said("Plane?")), "empty-text"),
    "jsonl: marks without images": (
        "conversations",
        row(**said("<image> <image> Plane?", "axial")),
        "placeholders",
    ),
    "jsonl: unknown speaker": (
        "conversations",
        row(conversations=[{"from": "crowd", "value": "x"}]),
        "bad-row",
    ),
    "jsonl: half a surrogate pair": (
        "conversations",
        line('{"conversations": [{"from": "gpt", "value": "\\ud800"}]}'),
        "bad-encoding",
    ),
    "unimedvl: a name as patient": ("unimedvl", row(patient="Mueller^Hans", message=[]), "unknown-field"),
    # reports
    "report: empty": ("reports", written("bad.txt", ""), "empty-report"),
    "report: Latin-1": ("reports", written("bad.txt", "FINDINGS: Hämatom".encode("latin-1")), "bad-encoding"),
    "report: broken XML": ("reports", written("bad.xml", "<eCitation><uId"), "bad-xml"),
    "report: XML with entities": ("reports", written("bad.xml", LAUGHS), "bad-xml"),
    "report: XML without words": ("reports", written("bad.xml", "<eCitation/>"), "empty-report"),
    "report: 5 MB": ("reports", written("bad.txt", "x" * 5_000_000), "text-too-long"),
    "report: a PDF": ("reports", written("bad.pdf", "%PDF-1.7"), "not-an-image"),
    # COCO
    "coco: a box outside": ("coco", coco(boxed(40, 30, 20, 20)), "bad-label"),
    "coco: a box without size": ("coco", coco(boxed(4, 3, 0, 2)), "bad-label"),
    "coco: a box of NaN": ("coco", coco(boxed(4, 3, float("nan"), 2)), "bad-label"),
    "coco: a box of words": ("coco", coco(boxed("a", 1, 2, 3)), "bad-label"),
    "coco: an unknown category": ("coco", coco({**boxed(1, 1, 2, 2), "category_id": 7}), "bad-label"),
    "coco: a polygon of one point": (
        "coco",
        coco({**boxed(1, 1, 2, 2), "segmentation": [[1, 2]]}),
        "bad-label",
    ),
    "coco: another size": ("coco", coco(height=41, width=48), "geometry-differs"),
    "coco: no file name": ("coco", coco(file_name=None), "bad-row"),
    # masks and pairs
    "mask: none": ("masks", masked(None), "unpaired"),
    "mask: another size": (
        "masks",
        masked(lambda f: (png(f / "bad.png", size=(48, 40)), None)[1]),
        "geometry-differs",
    ),
    "mask: colours": (
        "masks",
        masked(lambda f: (png(f / "bad.png", size=(40, 48), mode="RGB"), None)[1]),
        "wrong-channels",
    ),
    "mask: damaged": ("masks", masked(written("bad.png", "no")), "image-damaged"),
    "pair: alone": ("pairs", paired(None), "unpaired"),
    "pair: another size": (
        "pairs",
        paired(lambda f: (png(f / "bad.png", size=(48, 40)), None)[1]),
        "geometry-differs",
    ),
    "pair: damaged": ("pairs", paired(written("bad.png", "no")), "image-damaged"),
}

HEALTHY: dict[str, Made] = {
    "dicom": lambda folder: (series(folder / "good", 3), None)[1],
    "nifti": lambda folder: (nifti(folder / "good.nii"), None)[1],
    "images": lambda folder: (png(folder / "good.png"), None)[1],
    "reports": GOOD_REPORT,
    "unimedvl": lambda folder: None,
}
FILE = {"table": "table.csv", "conversations": "rows.jsonl", "coco": "coco.json", "unimedvl": "rows.jsonl"}
OPTIONS: dict[str, dict[str, Any]] = {
    "images": {"modality": "mri"}, "nifti": {"modality": "mri"}, "table": {"modality": "mri"},
    "coco": {"modality": "mri"}, "masks": {"modality": "mri"}, "pairs": {"modality": "mri"},
}  # fmt: skip


def test_there_are_more_than_fifty() -> None:
    assert len(DAMAGED) >= 90


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_a_reject_and_the_run_goes_on(name: str, tmp_path: Path, caplog, capfd) -> None:
    kind, damage, code = DAMAGED[name]
    folder = tmp_path / "Mueller_Hans"
    folder.mkdir()
    HEALTHY.get(kind, lambda folder: None)(folder)
    damage(folder)
    given = {
        "path": str(folder / FILE.get(kind, "")),
        "root": str(tmp_path / "out"),
        "dataset": "d",
        "public": True,
    }
    source = make({"step": "ingest", "kind": kind, **given, **OPTIONS.get(kind, {})})
    assert isinstance(source, Source)
    tally = Tally()
    items = list(source((), tally))
    rejects = [item for item in items if isinstance(item, Reject)]
    assert tally.taken == tally.kept + tally.rejected
    if kind != "unimedvl":  # whose healthy line is of another form
        assert any(isinstance(item, Record) for item in items), rejects
    for item in items:
        if isinstance(item, Record):
            assert set(item.facts) <= set(FACTS), item.facts
            assert item.provenance or kind == "unimedvl"
    if code == KEPT:
        assert not rejects and tally.taken == tally.kept == 2, rejects
        return
    assert code in {reject.code for reject in rejects}, rejects
    assert code in KNOWN
    for reject in rejects:
        assert reject.code != "unexpected" and "\n" not in reject.reason and len(reject.reason) < 400
        for secret in (str(tmp_path), "Mueller", "Hans", "bad.", "Traceback"):
            assert secret not in f"{reject.reason} {reject.place}", (secret, reject)
    out, err = capfd.readouterr()
    assert "Mueller" not in out + err + caplog.text and "Traceback" not in err


def test_a_file_that_cannot_be_read_as_a_whole_is_one_sentence(tmp_path: Path) -> None:
    png(tmp_path / "good.png")
    for kind, name, content, message in [
        ("table", "a.csv", "", "is empty"), ("table", "a.json", "{", "is no JSON"),
        ("coco", "a.json", "[1]", "lacks a list"), ("coco", "b.json", "{", "is no JSON"),
        ("bagel", "a.parquet", "PAR1", "cannot be read as Parquet"),
        ("unimedvl", "a.parquet", "", "as Parquet"),
        ("reports", "a.tgz", "no archive", "cannot be read as an archive"),
    ]:  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message) as error:
            given = {
                "path": str(tmp_path / name),
                "root": str(tmp_path / "out"),
                "dataset": "d",
                "public": True,
            }
            source = make({"step": "ingest", "kind": kind, "modality": "mri", **given})
            assert isinstance(source, Source)
            source.parts()
        assert "\n" not in str(error.value)


def test_pictures_that_are_kept_show_what_they_are(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (40, 1))
    folder = tmp_path / "in"
    folder.mkdir()
    picture("deep.png", value=ramp)(folder)
    red = Image.merge("CMYK", [Image.new("L", (48, 40), v) for v in (0, 255, 255, 0)])
    red.save(folder / "red.jpg", quality=95)
    given = {"path": str(folder), "root": str(tmp_path / "out"), "dataset": "d", "public": True}
    source = make({"step": "ingest", "kind": "images", "modality": "fundus", **given})
    deep, colour = (item for item in source() if isinstance(item, Record))
    with Image.open(tmp_path / "out" / deep.input_img[0].path) as image:
        levels = np.unique(np.array(image))
    assert len(levels) >= 40 and levels.max() > 240  # not saturated by 8 bits
    with Image.open(tmp_path / "out" / colour.input_img[0].path) as image:
        r, g, b = np.array(image)[20, 20]
    assert r > 150 and g < 90 and b < 90


def test_unreadable_headers_say_nothing_of_the_patient(tmp_path: Path) -> None:
    """Values that pydicom would quote in a warning."""
    path = dicom(tmp_path / "in" / "bad.dcm", series=generate_uid())
    whole = path.read_bytes().replace(b"19310203", b"31.02.Qu")
    path.write_bytes(whole.replace(b"PID-4711-0815", b"Quasimodo\xff\xfe\xfd\xfc"))
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "public": True}
    items = list(make({"step": "ingest", "kind": "dicom", **given})())
    assert items and "Quasimodo" not in str([item.to_json() for item in items])
