# SPDX-License-Identifier: Apache-2.0
"""Who the patient is, in the words of DICOM headers, and how free text loses them: `scrub`.

    known = identifiers(headers)        # decoded by Specific Character Set (0008,0005)
    scrub("李武, *21.3.1937: no edema.", known)      # "[removed], *[removed]: no edema."

A text is compared without marks (ü is u), widths (Ａ is A) and the difference of the two kana. What may be an
ordinary word too is *weak* and leaves less often, because "No fracture" must not become "[removed] fracture":

    parts of a name                       are removed
    three letters on                      as words, in any case, also with a genitive s or a Russian ending
    two ideographs or syllables on        wherever they stand: these scripts have no spaces between words
    two letters (Li, NG)                  as words, capitalised; in capitals unless that is a usual short form
    two letters that are a word (No, An)  beside another part of the name, or behind a title (Mr No)
    particles (von, de, van)              beside another part
    one letter (J.)                       beside another part
    one ideograph or syllable (王)        beside another part, before a title (王先生), or alone between signs
    two kana (まり)                       where no other kana stands before them (not in つまり)

A number of one to three digits is removed behind a word such as ID or patient, and longer ones anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import permutations

from pydicom import Dataset
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.multival import MultiValue

from monai_unimedvl.transforms.birth_dates import as_written, date_of

NAMES = "PatientName OtherPatientNames PatientBirthName PatientMotherBirthName ResponsiblePerson"
IDS = "PatientID OtherPatientIDs"
NUMBERS = """
    IssuerOfPatientID AccessionNumber StudyID AdmissionID PatientBirthDate
    PatientTelephoneNumbers PatientAddress MedicalRecordLocator StudyInstanceUID
    SeriesInstanceUID SOPInstanceUID
"""
REMOVED = "[removed]"

# Thai to Khmer, kana, ideographs, Hangul: written without spaces, or with particles that cling to names.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
KANA = "\u3040-\u30ff\u31f0-\u31ff"
GAP = r"[\s^=,.·・\-_'’/\\]"  # what stands between the parts of a name
WITHIN = r"[ \t\u3000^=,·・\-_'’/\\]"  # the same within a sentence: "Any mass? No. An ..."
HONORIFICS = "先生|女士|小姐|太太|氏|様|サン|殿|君|某|씨|님|선생"
TITLES = "mr|mrs|ms|miss|dr|prof|herr|frau|hr|fr|mme|madame|monsieur|sr|sra|signor|signora|name"
LABELS = r"(?:patient|pat|id|pid|mrn|case|nr|number|患者番号|病历号|환자번호)"
WORDS = frozenset(
    """
    am an and as at be by do for go he hi if in is it me my no not of oh ok on or so the to up us we
    mr mrs ms dr jr sr md da de del den der des di die das dos du el em en er es et il im ja la las le les lo
    los ma mi ne ob se si su te tu un una um vom von van wo zu zum zur ten ter bin ibn abu не на по до от из
    """.split()
)
SHORT_FORMS = frozenset(
    """
    AP CC CM CT DX FA FU GE GI HU IR IV KG KV LA LV MA MG ML MM MR NG NM PA PD PE PT RA RV SE TE TI TR US VA
    """.split()
)
PLAIN = str.maketrans({"ß": "ss", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ł": "l",
                       "Ł": "L", "đ": "d", "Đ": "D", "ı": "i", "ð": "d", "þ": "th", "Þ": "Th"})  # fmt: skip
SPELT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ø": "oe", "Ø": "Oe",
                       "å": "aa", "Å": "Aa"})  # fmt: skip


def identifiers(headers: list[Dataset]) -> list[str]:
    """Names, numbers, birth dates and UIDs of the patient that stand in headers, the longest first."""
    found: set[str] = set()
    for header, charset in _with_nested(headers):
        for keyword in NAMES.split():
            for whole in _texts(header, keyword, charset):
                for name in whole.split("\\"):
                    found |= {name, *_of_name(name)}
        for keyword in (*IDS.split(), *NUMBERS.split()):
            for whole in _texts(header, keyword, charset):
                parts = [part.strip() for part in whole.split("\\")]
                found |= {part for part in parts if len(part) > 3 or keyword in IDS and part.isdigit()}
    return sorted(filter(None, found), key=lambda text: (-len(text), text))


def scrub(text: str, known: Iterable[str]) -> str:
    """Free text with the known identifiers replaced by [removed]; see above for how they may stand."""
    folded, places = _folded(text)
    low = folded.lower()
    spans: list[tuple[int, int]] = []
    for identifier in known:
        for pattern in _patterns(identifier, low):
            for match in re.finditer(pattern, folded):
                start, stop = match.span("it" if "it" in match.re.groupindex else 0)
                if not (_is_within(folded, start) or _is_within(folded, stop)):
                    spans.append((places[start], places[stop]))
    clean, done = "", 0
    for start, stop in sorted(spans):
        if start >= done:
            clean += text[done:start] + REMOVED
        done = max(done, stop)
    return clean + text[done:]


def _with_nested(headers: list[Dataset]) -> Iterator[tuple[Dataset, list[str]]]:
    """Each header with its encodings, and the items of other numbers in it, with theirs or the header's."""
    for header in headers:
        outer = _encodings(header, ["iso8859"])
        yield header, outer
        for item in header.get("OtherPatientIDsSequence") or []:
            yield item, _encodings(item, outer)


def _encodings(header: Dataset, inherited: list[str]) -> list[str]:
    if not header.get("SpecificCharacterSet"):
        return inherited
    named = header.SpecificCharacterSet
    try:
        return convert_encodings(list(named) if isinstance(named, list | tuple | MultiValue) else str(named))
    except LookupError:  # raised where pydicom is set to be strict
        return inherited


def _texts(header: Dataset, keyword: str, encodings: list[str]) -> set[str]:
    """The characters of an element, unchecked, so that no reader's warning repeats them.

    Bytes as their character set says, and as UTF-8 where they can be that: headers often name the wrong one.
    """
    if keyword not in header:
        return set()
    value = header.get_item(keyword).value
    if isinstance(value, list | tuple | MultiValue):
        return {"\\".join(str(part) for part in value)}
    if not isinstance(value, bytes):
        return {str("" if value is None else value).strip("\0 ")}
    try:
        found = {decode_bytes(value, encodings, set(b"^=\\"))}
    except (LookupError, ValueError):  # raised where pydicom is set to be strict
        found = {value.decode("latin-1")}
    with suppress(UnicodeDecodeError):
        found |= {value.decode("utf8")} if b"\x1b" not in value else set()
    return {text.strip("\0 ") for text in found}


def _of_name(name: str) -> set[str]:
    """Each part of a name `family^given^...=ideographs=sounds`, and what may stand beside each other."""
    found: set[str] = set()
    for group in {name, name.translate(SPELT)}:
        for written in group.split("="):
            parts = [part for part in re.split(r"[\^\s,]+", written) if re.search(r"[^\W_]", part)]
            found |= {*parts, *written.split("^"), " ".join(parts), " ".join(reversed(parts))}
            if any(_is_weak(part) for part in parts):
                found |= {" ".join(pair) for pair in permutations(parts, 2)}
    return found


def _patterns(identifier: str, low: str) -> list[str]:
    """Expressions that find an identifier in a folded text; few where its beginning is not in `low`."""
    found = as_written(date) if (date := date_of(identifier)) else []
    folded, _ = _folded(identifier)
    tokens = [token for token in re.split(f"{GAP}+", folded) if token]
    if not tokens or any((each if each.isdigit() else each[0]).lower() not in low for each in tokens):
        return found  # as for most UIDs of a series
    if len(tokens) == 1 and len(folded) < 4 and folded.isdigit():
        return [rf"(?i:\b{LABELS}\b[\W_]{{0,3}}(?:(?:no|nr|number|id)[\W_]{{1,3}})?)(?P<it>{folded})(?!\w)"]
    if len(tokens) == 1 and _is_weak(folded):
        return _alone(folded)
    if all(map(_is_weak, tokens)):
        gap = GAP if any(len(token) == 1 for token in tokens) else WITHIN
        found.append(f"{gap}{{0,3}}".join(map(_in_capitals, tokens)))
        if not any(token.lower() in WORDS for token in tokens):
            found.append(f"(?i:{f'{GAP}{{1,3}}'.join(map(re.escape, tokens))})")
        return found
    few = any(map(str.isdigit, folded)) and sum(map(str.isalnum, folded)) < 6  # 12-34 is not 12.34
    words = re.escape(folded) if few else f"{GAP}{{0,3}}".join(map(_inflected, tokens))
    return [*found, f"(?i:{words})"]


def _is_weak(part: str) -> bool:
    """Whether a part of a name is so short, or so usual a word, that it is not removed wherever it stands."""
    if re.match(f"[{KANA}]+$", part):
        return len(part) <= 2
    if re.match(f"[{UNSPACED}]", part):
        return len(part) == 1
    letters = [letter for letter in part if letter.isalnum()]
    return not part.isdigit() and (len(letters) <= 2 or part.lower() in WORDS)


def _alone(part: str) -> list[str]:
    """Where a weak part is removed with no other part of the name beside it."""
    word = re.escape(part)
    if re.match(f"[{KANA}]{{2}}", part):
        return [f"(?<![{KANA}]){word}"]
    if re.match(f"[{UNSPACED}]", part):
        return [rf"(?<![^\W_]){word}(?![^\W_])", f"{word}(?={HONORIFICS})"]
    titled = rf"(?i:\b(?:{TITLES})\b)[.:]?\s{{1,2}}(?P<it>{_in_capitals(part)})"
    if len(part) < 2 or not part[0].isupper() or part.lower() in WORDS:
        return [titled] if part[0].isupper() else []
    forms = [part.capitalize()] + [part.upper()] * (part.upper() not in SHORT_FORMS)
    return [titled, f"(?:{'|'.join(map(re.escape, forms))})(?!-?RADS)"]


def _in_capitals(part: str) -> str:
    """Li or LI"""
    return f"(?:{'|'.join(sorted({re.escape(part.capitalize()), re.escape(part.upper())}))})"


def _inflected(token: str) -> str:
    """A part of a name as other spellings and cases have it: Muller for Mueller, Jones's, Ивановой."""
    if re.fullmatch("[а-яА-Я]{4,}", token):
        stem = token
        for _ in range(2):
            stem = stem[:-1] if len(stem) > 4 and stem[-1].lower() in "аеиоуыьэюя" else stem
        return f"{re.escape(stem)}[а-яА-Я]{{0,3}}"
    if re.fullmatch("[a-zA-Z]{4,}", token):
        return re.sub("(?<=[aou])e", "e?", token, flags=re.IGNORECASE) + "s?"
    return re.escape(token)


def _is_within(folded: str, place: int) -> bool:
    """Whether a place lies inside of a word of a script that has words, or of a number."""
    before, behind = folded[max(place - 1, 0) : place], folded[place : place + 1]
    if before.isdigit() or behind.isdigit():
        return before.isdigit() and behind.isdigit()
    return before.isalpha() and behind.isalpha() and not re.search(f"[{UNSPACED}]", before + behind)


def _folded(text: str) -> tuple[str, list[int]]:
    """A text in plain letters, and where in the text each of them is from; one place more, for the end."""
    letters, places = "", []
    for place, sign in enumerate(text):
        plain = sign
        if sign > "\x7f" and not "\uac00" <= sign <= "\ud7a3":
            plain = unicodedata.normalize("NFKD", sign).translate(PLAIN)
        for letter in plain:
            if "\u0300" <= letter <= "\u036f" or unicodedata.category(letter) == "Cf":
                continue  # marks, soft hyphens, signs without width
            letters += chr(ord(letter) + 0x60) if "\u3041" <= letter <= "\u3096" else letter
            places.append(place)
    return letters, [*places, len(text)]
