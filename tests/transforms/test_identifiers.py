# SPDX-License-Identifier: Apache-2.0
"""Free text loses what headers know, in any script and spelling, and keeps words that only look like it."""

from __future__ import annotations

import io
import unicodedata
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from monai_unimedvl.transforms.birth_dates import date_of
from monai_unimedvl.transforms.identifiers import identifiers, scrub


def read_back(charset: str | list[str] = "ISO_IR 192", **tags: object) -> Dataset:
    """A header as a file gives it: values are bytes, in its character set."""
    made, stream = Dataset(), io.BytesIO()
    made.SpecificCharacterSet = charset
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    pydicom.dcmwrite(stream, made, implicit_vr=True, little_endian=True)
    stream.seek(0)
    return pydicom.dcmread(stream, force=True)


def scrubbed(text: str, name: str, charset: str | list[str] = "ISO_IR 192", **tags: object) -> str:
    return scrub(text, identifiers([read_back(charset, PatientName=name, **tags)]))


def test_names_and_numbers_leave_in_any_case_and_order():
    made = Dataset()
    made.PatientName, made.PatientID, made.StudyInstanceUID = "Doe^Jane", "MRN-778812", "1.2.840.77.1"
    other = Dataset()
    other.PatientID = "OLD-47QX11"
    made.OtherPatientIDsSequence = [other]
    said = "Jane Doe (DOE, jane; Doe/mrn 778812, old-47qx11; 1.2.840.77.1) has no janelle and no doeskin."
    assert scrub(said, identifiers([made])) == (
        "[removed] ([removed]; [removed]/[removed], [removed]; [removed]) has no janelle and no doeskin."
    )


@pytest.mark.parametrize(
    "charset, name, said",
    [
        ("GB18030", "Wang^XiaoDong=王^小东", "患者王小东今天来诊,小东无不适,王先生(Xiaodong Wang)已出院。"),
        ("GB18030", "Zhang^Wei=张^伟", "张伟的CT正常。姓名:张 伟"),
        (
            ["", "ISO 2022 IR 87"],
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
            "山田太郎様の頭部CT。やまだたろう、ヤマダ タロウ、ﾔﾏﾀﾞ。",
        ),
        (["", "ISO 2022 IR 87"], "Akita^Shu=秋田^集=あきた^しゅう", "本日秋田 集さんの検査。氏名=秋田"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동", "환자 홍길동은 정상. 洪吉洞, 길동이, 홍씨"),
        ("ISO_IR 144", "Иванова^Мария", "У Ивановой Марии нет перелома. ИВАНОВА осмотрена, Марию отпустили."),
        ("ISO_IR 144", "Достоевский^Фёдор", "Достоевскому (Федор) лучше"),
        ("ISO_IR 100", "Müller-Groß^Jörg", "Jorg Müller-Gross, MUELLER GROSS, Müller-Groß' Joerg"),
        ("ISO_IR 126", "Παπαδόπουλος^Νίκος", "Ο Νίκος Παπαδοπουλος"),
        ("ISO_IR 192", "Nguyễn^Thị=阮^氏", "Nguyen Thi, NGUYỄN, 阮氏"),
        ("ISO_IR 166", "สมชาย^ใจดี", "ผู้ป่วยสมชายใจดีมา"),
        ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", "山本とヤマダ、やまだたろう"),
    ],
)  # fmt: skip
def test_names_of_other_scripts_leave_running_text(charset, name, said):
    clean = scrubbed(unicodedata.normalize("NFC", said), name, charset)
    parts = [part for group in name.split("=") for part in group.split("^") if len(part) > 1]
    assert "[removed]" in clean
    others = "小东 王 张 伟 太郎 タロウ ﾔﾏ 길동 홍 洪 阮 Иванов Мари Достоевск Федор Jo Jö Mue Mü Παπ Thi"
    for part in [*parts, *others.split()]:
        assert part not in clean, clean


def test_an_undeclared_or_wrong_character_set_is_also_tried_as_utf8():
    header = read_back("ISO_IR 192", PatientName="Wang^XiaoDong=王^小东")
    for charset in (None, "ISO_IR 100"):
        header["SpecificCharacterSet"] = pydicom.DataElement(0x00080005, "CS", charset)
        assert scrub("患者小东。", identifiers([header])) == "患者[removed]。"


def test_marks_widths_and_hidden_signs_do_not_save_a_name():
    for said in ("Mu\u0308ller", "MULLER", "Mül\u00adler", "Ｍｕｌｌｅｒ", "Mueller", "Müller_1", "Müllers"):
        assert scrubbed(f"of {said}.", "Müller^Jan").replace("_1", "") == "of [removed]."
    assert scrubbed("of Müller.", "MUELLER^JAN") == "of [removed]."
    assert scrubbed("5 cm² of Ｔ２, ½ mm", "Müller^Jan") == "5 cm² of Ｔ２, ½ mm"


def test_two_letters_leave_as_a_word_that_is_capitalised():
    assert scrubbed("Li is well. LI, Wu; li wu, LiWu; Wu's", "Li^Wu") == (
        "[removed] is well. [removed]; [removed], [removed]; [removed]'s"
    )
    kept = "The liver, LI-RADS 3, a lie; Lithium, Wurst, 3 li, in wu."
    assert scrubbed(kept, "Li^Wu") == kept
    assert scrubbed("Mrs Ng and NG WEI have an NG tube, 3 ng.", "NG^WEI") == (
        "Mrs [removed] and [removed] have an NG tube, 3 ng."
    )
    assert scrubbed("Hu: 40 HU; HU, Bo.", "Hu^Bo") == "[removed]: 40 HU; [removed]."


def test_two_letters_that_are_a_word_leave_only_beside_the_name():
    assert scrubbed("No mass in An. No, An; Mr No. An 8 mm cyst.", "No^An") == (
        "No mass in An. [removed]; Mr [removed]. An 8 mm cyst."
    )
    kept = "In no lobe is an oral or main stem; no infarct. A 5 mm nodule. NO EFFUSION IN. Inan"
    assert scrubbed(kept, "No^In") == kept
    assert scrubbed("J. Smith, Smith J; vitamin J", "Smith^J") == "[removed], [removed]; vitamin J"
    assert scrubbed("von der Leyen; was von der Leber kommt", "von der Leyen^Ursula") == (
        "[removed]; was von der Leber kommt"
    )


def test_one_ideograph_leaves_only_where_it_is_a_name():
    assert scrubbed("姓名:王。王先生,王某。国王明天来。", "Wang^Li=王^丽") == (
        "姓名:[removed]。[removed]先生,[removed]某。国王明天来。"
    )
    assert scrubbed("まりは元気。つまり異常なし。", "Sato^Mari=佐藤^真理=さとう^まり") == (
        "[removed]は元気。つまり異常なし。"
    )


@pytest.mark.parametrize(
    "said",
    "19370321|1937-03-21|1937/3/21|1937 03 21|21.03.1937|21.3.37|21. 3. 1937|21-03-1937|03/21/1937|"
    "3/21/37|37-03-21|21031937|03211937|21 March 1937|21st of March, 1937|March 21, 1937|MAR 21 1937|"
    "Mar. 21st, 1937|21-Mar-1937|21MAR1937|1937 Mar 21|21. März 1937|21 mars 1937|21 de marzo de 1937|"
    "21 марта 1937|1937年3月21日|1937년 3월 21일|昭和12年3月21日|S12.3.21|１９３７年３月２１日|"
    "2 1".split("|"),
)  # fmt: skip
def test_a_birth_date_leaves_in_every_spelling(said):
    clean = scrubbed(f"born {said}, 3 x 21 mm on 22.03.1937", "Li^Wu", PatientBirthDate="19370321")
    left = said if said == "2 1" else "[removed]"
    assert clean == f"born {left}, 3 x 21 mm on 22.03.1937"
    assert scrubbed(f"出生{said}出院", "Li^Wu", PatientBirthDate="19370321") == f"出生{left}出院"


def test_every_month_is_known_by_its_names():
    for number, names in enumerate(
        "Jan|Feb|Mar|April|May|June|Juli|août|Septiembre|Oktober|nov.|Dezember".split("|")
    ):
        day = f"1937{number + 1:02}09"
        assert date_of(day) and scrubbed(f"{names} 9, 1937", "Li^Wu", PatientBirthDate=day) == "[removed]"
        assert scrubbed("5 9 12 1937, 9 mm", "Li^Wu", PatientBirthDate="19370909") == "5 9 12 1937, 9 mm"
    assert date_of("19470231") is None and date_of("19470231X") is None and date_of("1937.03.21")


def test_numbers_leave_with_other_signs_between_and_short_ones_behind_a_word():
    tags = {"PatientID": "4711-0815", "AccessionNumber": "12-34"}
    assert scrubbed("4711 0815, 47110815号, 患者4711-0815有, 12-34", "Li^Wu", **tags) == (
        "[removed], [removed]号, 患者[removed]有, [removed]"
    )
    assert scrubbed("12.34 mm, 147110815", "Li^Wu", **tags) == "12.34 mm, 147110815"
    assert scrubbed("Patient no. 7, ID: 7; no 7 mm cyst, L7", "Li^Wu", PatientID="7") == (
        "Patient no. [removed], ID: [removed]; no 7 mm cyst, L7"
    )


def test_no_warning_and_no_error_repeats_a_name():
    header = read_back("ISO_IR 192", PatientName="王^小东")
    header["SpecificCharacterSet"] = pydicom.DataElement(0x00080005, "CS", ["ISO_IR 6", "ISO 2022 IR 87"])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert identifiers([header, Dataset()])
    assert not [w for w in heard if "小东" in str(w.message)]


def test_a_report_in_dicom_keeps_no_name_of_its_source(tmp_path: Path):
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'monai-unimedvl[dicom]'")
    from sources import dicom

    from monai_unimedvl.provenance import Facts, write_report
    from monai_unimedvl.provenance.structured_report import read_report

    name = {
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
    }
    source = dicom(tmp_path / "in.dcm", **name, PatientBirthDate="19370321")
    facts = Facts("山田太郎様(昭和12年3月21日)の所見は?", 1, "ab" * 32, "report")
    path = write_report("本日山田様の脳。", "21 March 1937, Tarou", tmp_path / "sr.dcm", facts, source=source)
    said = "".join(
        [str(read_report(path)), *(each.read_text("utf8", "ignore") for each in tmp_path.glob("sr*"))]
    )
    for word in ("山田", "太郎", "Tarou", "March", "昭和"):
        assert word not in said and word.encode("unicode_escape").decode() not in said
