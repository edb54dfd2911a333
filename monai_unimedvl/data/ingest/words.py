# SPDX-License-Identifier: Apache-2.0
"""The words around a source: reasons as codes, sentences without file names, texts without identifiers."""

from __future__ import annotations

import re
from pathlib import Path

REMOVED = "[removed]"

# What a reader's sentence says -> the code of the reject; the first that fits.
REASONS = (
    ("is empty \\(0 bytes\\)", "empty-file"),
    ("in another file", "path-outside"),
    ("unpacks to more", "too-large"),
    ("does not equal the product", "image-damaged"),
    ("pixels|voxels|too many frames", None),  # see below: several things are said of pixels
    ("share places", "series-overlap"),
    ("differ in size|differ in direction", "series-mixed"),
    ("mm apart", "slices-missing"),
    ("unknown suffix", "not-an-image"),
    ("is \\d-D|4-D|dimensions", "wrong-dimensions"),
    ("cannot be inverted", "bad-affine"),
    ("NaN or Inf", "not-finite"),
    ("channels", "wrong-channels"),
    ("away from its image|lies apart|outside of the picture|leaves the picture", "geometry-differs"),
    ("holds no images", "no-pixels"),
    ("does not exist", "image-missing"),
    ("cannot be read|damaged|truncated", "image-damaged"),
)
PIXELS = (
    ("NaN or Inf", "not-finite"),
    ("holds no pixels", "no-pixels"),
    ("each side needs", "too-small"),
    ("at most|are read|too many", "too-large"),
    ("bring both to one size|its image", "geometry-differs"),
)
CODES = {
    "empty-file": "a file of 0 bytes",
    "not-an-image": "a file of a kind that no reader here opens",
    "image-damaged": "a file that is cut short or no image of its kind",
    "no-pixels": "a DICOM file without pixels",
    "not-finite": "values that are NaN or Inf",
    "too-large": "more pixels, voxels or frames than are read at once",
    "too-small": "a side below 8 pixels",
    "wrong-dimensions": "a 4-D file where one volume or picture is needed",
    "wrong-channels": "neither 1 nor 3 colours, or colours where labels are needed",
    "bad-affine": "a volume whose place in mm cannot be",
    "series-mixed": "slices of one series that differ in size or direction",
    "series-overlap": "slices of one series at the same place",
    "slices-missing": "a series with a gap",
    "geometry-differs": "images of a pair, or a mask and its image, that do not lie on each other",
    "modality-unknown": "a header that names no modality with a recipe",
    "burned-in": "text in the pixels, by the header",
    "path-outside": "a table that names a file outside of its folder, or a header that names another file",
    "bad-encoding": "bytes that are no UTF-8",
    "bad-xml": "no report, or one with entities",
    "bad-row": "a row of a table that does not fit",
    "bad-label": "a label, box, mask or measurement that does not fit",
    "no-label": "a row that says nothing about its image",
    "unpaired": "a file without its partner",
    "empty-report": "a report without words",
    "empty-text": "a row without words",
    "text-too-long": "a text of more than a million characters",
    "identifier": "a text with what looks like a patient's identifier",
    "unreadable": "anything else that a reader refuses",
}
# Things in free text that point at a person. Wide on purpose: a lost number costs less than a kept name.
IDENTIFIERS = re.compile(
    r"""
    \b\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}\b          # 03/04/1967
    | \b(?:19|20)\d{2}[./-]\d{1,2}[./-]\d{1,2}\b          # 1967-04-03, 2020/1/5
    | \b\d{1,2}\s+(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?,?\s+(?:19|20)\d{2}\b
    | \b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s+\d{1,2},\s+(?:19|20)\d{2}\b
    | \b[\w.+-]+@[\w-]+\.[\w.]+\b                        # mail
    | \+?\b\d{2,4}[\s/-]\d{3,4}[\s-]\d{3,5}\b            # telephone
    | \b\d{7,}\b                                         # numbers of patients and of requests
    | \b(?:MRN|ID|Acc(?:ession)?|Case|Patient\s+(?:no|number|ID))\.?\s*(?:no|number|\#)?\.?
      \s*[:\#]\s*[A-Z0-9][\w.-]{3,}
    | (?-i:\bMRN)\s+[\w.-]*\d[\w.-]*
    | (?<=name:)\s*[^\W\d_][\w'-]+(?:[\s,^]+[^\W\d_][\w'-]+){0,2}
    | (?-i:(?:(?<=PATIENT:)|(?<=Patient:))\s*[A-Z][\w'-]+(?:[\s,^]+[A-Z][\w'-]+){0,2})
    | (?-i:\b(?:(?:Mr|Mrs|Ms|Miss|Dr|Prof)\.?\s+)+[A-Z][\w'-]+(?:\s+[A-Z][\w'-]+)?)
    | (?-i:\b(?:(?:MRS?\.|MS\.|DR\.|MISS|PROF\.?|(?<=BY\s)DR|(?<=AND\s)DR)\s+)+  # MR and DR are modalities
      (?!(?:AND|AT|BY|FOR|IN|IS|OF|ON|THE|TO|WITH)\b)[A-Z][A-Z'-]+(?:\s+
      (?!(?:AND|AT|BY|CALLED|FOR|HAS|IN|INFORMED|IS|NOTIFIED|OF|ON|SAW|THE|TO|WAS|WITH)\b)[A-Z][A-Z'-]+)?)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def code_of(reason: str) -> str:
    """The reject code of what a reader said."""
    for pattern, code in REASONS:
        if re.search(pattern, reason):
            if code is not None:
                return code
            for inner, found in PIXELS:
                if re.search(inner, reason):
                    return found
    return "unreadable"


def without_names(reason: str, *paths: Path | str) -> str:
    """A sentence with the files' names and folders replaced, since both may hold the name of a patient.

    A folder `images` or a file `empty.png` is no reason to replace these words in a sentence of ours: plain
    words are replaced only in brackets, where the sentence of a package stands.
    """
    said = reason
    for path in map(Path, paths):
        kind = "".join(path.suffixes[-1:])
        folders = [part for part in path.parent.parts if part != path.anchor]
        for whole in _spellings(str(path)):
            said = said.replace(whole, f"the {kind} file")
        if len(folders) > 1:
            for whole in _spellings(str(path.parent)):
                said = said.replace(whole, "its folder")
        parts = {path.name.split(".")[0], *folders} - {path.name}
        for name in [path.name, *sorted(parts, key=len, reverse=True)]:
            if len(name) <= 2:
                continue
            either = "|".join(map(re.escape, _spellings(name)))
            found = re.compile(rf"(?<!\w)(?:{either})(?!\w)")
            if name != path.name and re.fullmatch("[a-z]+", name):
                said = re.sub(r"\([^()]*\)", lambda part, found=found: found.sub("the file", part[0]), said)  # type: ignore[misc]
            else:
                said = found.sub("the file", said)
    return re.sub(r"(/[^\s/:,;]+){2,}", "a path", said)


def _spellings(name: str) -> list[str]:
    """A name as it is and as packages print it: with escapes, and on one line; the longest first."""
    escaped = repr(name)[1:-1]
    forms = {name, escaped, name.replace("'", "\\'"), name.replace("\\", "\\\\")}
    return sorted(forms | {" ".join(form.split()) for form in forms}, key=lambda form: (-len(form), form))


def without_identifiers(words: str) -> tuple[str, int]:
    """A text with what looks like an identifier replaced by [removed], and how many there were.

    This finds dates, telephone and long numbers, mail addresses and names behind a title or a label; it does
    not find a bare name. Say what is known to be in a text by its own list (`transforms.identifiers.scrub`).
    """
    return IDENTIFIERS.subn(REMOVED, words)
