# SPDX-License-Identifier: Apache-2.0
"""Findings and impression as a DICOM structured report (SR), after template 2000.

Basic Text SR by default, which every archive takes; Enhanced SR holds the same and is what
`highdicom.sr.srread` opens. Preliminary and unverified: no person has looked at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import BasicTextSRStorage, EnhancedSRStorage, generate_uid

from monai_unimedvl import __version__
from monai_unimedvl.packages import needed
from monai_unimedvl.provenance.dicom import MAKER, SERIES_NUMBER, Source, origin, stamp, taking_over, to_bytes
from monai_unimedvl.provenance.facts import NOTICE, Facts, write_marked
from monai_unimedvl.provenance.files import ending
from monai_unimedvl.transforms.identifiers import scrub

TITLE = codes.cid7000.DiagnosticImagingReport
CLASSES = {"basic": BasicTextSRStorage, "enhanced": EnhancedSRStorage}


@dataclass(frozen=True)
class Report:
    """The words of a report."""

    findings: str
    impression: str


def write_report(
    findings: str,
    impression: str,
    path: str | Path,
    facts: Facts,
    *,
    source: Source = None,
    kind: str = "basic",
    language: str = "en",
    keep_identity: bool = False,
) -> Path:
    """Write a report as a marked DICOM SR and its manifest; returns the path.

    Args:
        findings, impression: words; one of them may be empty. Names and numbers of the patient that stand in
            the source's header are taken out, unless the identity is kept.
        source: the images it is about: DICOM folder, files or headers; they become its evidence.
        kind: "basic" (Basic Text SR) or "enhanced".
        language: RFC 5646, of the words.
        keep_identity: take patient and study over as they are.

    Raises:
        ValueError: highdicom is missing, nothing is said, an unknown kind, no such source.
    """
    hd = needed("highdicom", "DICOM SR", "dicom")
    path = ending(path, (".dcm",), "a report")
    if kind not in CLASSES:
        raise ValueError(f"kind {kind!r} came, but 'basic' or 'enhanced' is expected.")
    whence = origin(source, keep_identity)
    facts = whence.facts(facts)
    parts = [scrub(text.strip(), whence.known) for text in (findings, impression)]
    if not any(parts):
        raise ValueError("findings and impression are empty, but a report says something: pass one of them.")
    if source is None:
        whence.first.SOPClassUID, whence.first.SOPInstanceUID = CLASSES[kind], generate_uid(prefix=None)
        whence.first.SeriesInstanceUID = generate_uid(prefix=None)
    content = _content(hd, parts[0], parts[1], language)
    with taking_over(path):
        made = hd.sr.EnhancedSR(
            evidence=whence.headers, content=content, series_number=SERIES_NUMBER, instance_number=1,
            series_instance_uid=generate_uid(prefix=None), sop_instance_uid=generate_uid(prefix=None),
            manufacturer=MAKER, manufacturer_model_name=MAKER, software_versions=__version__,
            is_complete=True, is_final=False, is_verified=False,
            series_description=f"SYNTHETIC {facts.task or 'report'}"[:64],
        )  # fmt: skip
    made.SOPClassUID = CLASSES[kind]
    if source is None:
        del made.CurrentRequestedProcedureEvidenceSequence
    mark = stamp(made, facts, facts.manifest(), keep_identity)
    return write_marked(to_bytes(made), path, mark)


def read_report(path: str | Path) -> Report:
    """Findings and impression out of an SR that `write_report` wrote.

    Raises:
        ValueError: no SR, or one without these parts.
    """
    path = Path(path)
    try:
        header = pydicom.dcmread(path)
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise ValueError(
            f"{path.name} cannot be read as DICOM: name an SR that write_report wrote."
        ) from error
    found = {
        str(item.ConceptNameCodeSequence[0].CodeValue): str(item.TextValue)
        for section in header.get("ContentSequence", [])
        for item in section.get("ContentSequence", [])
        if "TextValue" in item and "ConceptNameCodeSequence" in item
    }
    if not found:
        raise ValueError(
            f"{path.name} holds no findings and no impression: name an SR that write_report wrote."
        )
    return Report(found.get(codes.DCM.Finding.value, ""), found.get(codes.DCM.Impression.value, ""))


def _content(hd: object, findings: str, impression: str, language: str) -> Dataset:
    """The tree of template 2000: language, observer, findings, impression, and that it is synthetic."""
    sr = hd.sr  # type: ignore[attr-defined]
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(prefix=None), name=MAKER, manufacturer_name=MAKER, model_name=__version__
        ),
    )
    root = sr.ContainerContentItem(TITLE, template_id="2000")
    spoken = sr.LanguageOfContentItemAndDescendants(sr.CodedConcept(language, "RFC5646", language))
    root.ContentSequence = [*spoken, *sr.ObservationContext(observer_device_context=device)]
    for section, item, text in (
        (codes.DCM.Findings, codes.DCM.Finding, findings),
        (codes.DCM.Impressions, codes.DCM.Impression, impression),
        (codes.DCM.Comment, codes.DCM.Comment, NOTICE),
    ):
        if text:
            inside = sr.ContainerContentItem(section, relationship_type="CONTAINS")
            inside.ContentSequence = [sr.TextContentItem(item, text, relationship_type="CONTAINS")]
            root.ContentSequence.append(inside)
    return root
