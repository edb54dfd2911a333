# SPDX-License-Identifier: Apache-2.0
"""Radiology reports: a folder of texts, or Open-i's XML (also as .tgz), with or without images.

`reports/17.txt` belongs to `images/17.png`, or to all files of `images/17/`; an Open-i report names its own.
A report without an image is kept for its words: findings to impression.
"""

from __future__ import annotations

import functools
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from monai_unimedvl.data.ingest.base import Ingest, stem, under, within
from monai_unimedvl.data.ingest.headings import sections
from monai_unimedvl.data.record import InvalidRecord, Record
from monai_unimedvl.data.step import Item, option

ARCHIVES = (".tgz", ".tar.gz", ".tar")
MAX_REPORT = 4_000_000  # bytes
CREATIVE = re.compile(r"creativecommons\.org/licenses/(by(?:-nc)?(?:-nd|-sa)?)/(\d\.\d)", re.IGNORECASE)
NOTHING = {"normal", "no indexing", "technical quality of image unsatisfactory"}


@dataclass(frozen=True, kw_only=True)
class IngestReports(Ingest):
    """Reports as texts or Open-i XML."""

    name: ClassVar[str] = "ingest-reports"
    about: ClassVar[str] = "radiology reports: a folder of texts, or Open-i XML (folder or .tgz), with images"
    example: ClassVar[str] = "reports/ --images images/ --out corpus --dataset ours --modality xray"
    images: str = option("", "folder of the images; without one the words are kept alone")
    needs_modality: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and not self.modality:
            raise ValueError(f"{self.name} has images and no modality, expected one such as xray: name it.")
        if self.images and not Path(self.images).is_dir():
            raise ValueError(f"images is {self.images!r}, expected a folder: check the path.")
        _ = self.secret

    def files(self) -> list[Path]:
        """The reports of a folder; the archive itself."""
        found = super().files()
        if Path(self.path).is_file():
            return found
        return [path for path in found if not self.images or not within(path, self.images)]

    @functools.cached_property
    def archive(self) -> dict[str, bytes] | None:
        """Member -> content, of an archive of XML."""
        path = Path(self.path)
        if not path.is_file() or not path.name.lower().endswith(ARCHIVES):
            return None
        found = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile() and member.name.lower().endswith((".xml", ".txt")):
                        stream = archive.extractfile(member)
                        if stream is not None:
                            found[member.name] = stream.read(MAX_REPORT + 1)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"{path.name} cannot be read as an archive, expected it whole: copy it again."
            ) from error
        return dict(sorted(found.items()))

    @functools.cached_property
    def pictured(self) -> dict[str, list[Path]]:
        """Name of a report or image without endings -> its files."""
        found: dict[str, list[Path]] = {}
        if self.images:
            for path in under(Path(self.images)):
                found.setdefault(stem(path), []).append(path)
                above = path.relative_to(self.images).parts[:-1]
                if above:
                    found.setdefault(above[0], []).append(path)
        return found

    def parts(self) -> Sequence[str]:
        """The reports."""
        found = list(self.order) if self.archive is None else list(self.archive)
        if not found:
            raise ValueError(f"{self.path} holds no report, expected .txt or .xml: check the path.")
        return found

    def each(self, part: str) -> Iterable[Item]:
        """One report -> a record."""
        return self.guarded(self._report(part), part)

    def place(self, path: Path | str, at: str = "") -> str:
        """As `Ingest`; of an archive by the order of its members."""
        if self.archive is None or self.show_names:
            return super().place(path, at)
        names = list(self.archive)
        return f"report {names.index(str(path)) + 1} of {len(names)} by name" if str(path) in names else at

    def _report(self, part: str) -> Iterator[Record]:
        path = Path(part)
        if path.suffix.lower() not in (".xml", ".txt"):
            raise InvalidRecord(
                "not-an-image", f"a {path.suffix or 'nameless'} file came, expected .txt or .xml."
            )
        if self.archive is None and path.stat().st_size > MAX_REPORT:
            raise InvalidRecord(
                "text-too-long", f"a report has more than {MAX_REPORT:,} bytes, expected a report."
            )
        content = path.read_bytes() if self.archive is None else self.archive[part]
        if len(content) > MAX_REPORT:
            raise InvalidRecord(
                "text-too-long", f"a report has more than {MAX_REPORT:,} bytes, expected a report."
            )
        if path.suffix.lower() == ".xml":
            words, about, named = open_i(content)
        else:
            words, about, named = _text(content), {}, [stem(path)]
        report = {key: self.text(said, f"the {key}") for key, said in words.items()}
        report = {key: said for key, said in report.items() if re.search(r"\w", said)}
        if not report:
            raise InvalidRecord(
                "empty-report", "a report has neither findings nor impression, expected either."
            )
        files = list(dict.fromkeys(file for name in named for file in self.pictured.get(name, [])))
        shown = tuple(self.save(picture) for file in files for picture in self.pictures(file))
        if not shown and "findings" not in report:
            raise InvalidRecord(
                "no-label", "a report without images has no findings, expected some to learn from."
            )
        who = str(about.get("id") or f"report {stem(path)}")
        kind = {} if shown else {"main_task_type": "text", "sub_task_type": "report"}
        yield self.record(
            (self.study(who), sorted(report.items())), input_img=shown, patient=self.patient(who),
            study=self.study(who), licence=str(about.get("licence", "")),
            facts={"report": report, "labels": about.get("labels", []), "patient_from": "study"},
            provenance={"facts": {"by": self.name, "from": "report"}}, **kind,
        )  # fmt: skip


def open_i(content: bytes) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """An Open-i report: its findings and impression; id, licence and labels; the names of its images.

    Raises:
        InvalidRecord: no such XML, or one with entities, which nobody needs here.
    """
    if re.search(rb"<!(DOCTYPE|ENTITY)", content[:100_000]):
        raise InvalidRecord("bad-xml", "a report declares entities, expected plain XML.")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidRecord("bad-xml", "a report is no XML, expected Open-i's form.") from error
    texts = {str(each.get("Label", "")).lower(): _words(each) for each in tree.iter("AbstractText")}
    words = {key: texts[key] for key in ("findings", "impression") if texts.get(key)}
    about: dict[str, Any] = {}
    named = tree.find(".//uId")
    if named is not None and named.get("id"):
        about["id"] = named.get("id")
    licence = tree.find(".//licenseURL")
    if licence is not None and (told := CREATIVE.search(_words(licence))):
        about["licence"] = f"CC-{told[1].upper()}-{told[2]}"
    terms = [_words(each).split("/")[0].strip().lower() for each in tree.iterfind(".//MeSH/major")]
    about["labels"] = sorted({term for term in terms if term and term not in NOTHING})
    return words, about, [str(each.get("id")) for each in tree.iter("parentImage") if each.get("id")]


def _words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _text(content: bytes) -> dict[str, str]:
    try:
        return sections(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidRecord(
            "bad-encoding", "a report is no UTF-8 text, expected it: save it anew."
        ) from error
