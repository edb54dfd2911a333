# SPDX-License-Identifier: Apache-2.0
"""Tiny made-up benchmarks in the layouts of their publishers."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from monai_unimedvl.evaluation.readers import choices


def png(grey: int = 100, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """A picture of one grey, (width, height)."""
    stream = io.BytesIO()
    Image.new(mode, size, grey if mode == "L" else (grey,) * len(mode)).save(stream, "PNG")
    return stream.getvalue()


def lay(path: Path, content: bytes | str | object = None) -> Path:
    """A file and its folders: a picture, a text, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = png()
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
    path.write_bytes(content)
    return path


def hub(path: Path, rows: list[tuple[int, str, str]]) -> None:
    """A Parquet file as the Hub's: pictures inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = [{"bytes": png(grey), "path": f"{grey}.png"} for grey, _, _ in rows]
    table = pyarrow.table({"image": image, "question": [r[1] for r in rows], "answer": [r[2] for r in rows]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def tsv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    """A table as VLMEvalKit's: pictures in base64, tabs, quotes where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf8") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([header, *rows])


def volume(path: Path, seed: int = 0) -> None:
    """A small NIfTI volume with something bright in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((16, 18, 12), dtype=np.float32)
    values[3:13, 3:15, 1:11] = np.random.default_rng(seed).random((10, 12, 10)) + 1
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def rad(root: Path) -> None:
    hub(
        root / "data/test-00000-of-00001-e5b.parquet",
        [(10, "Is it normal?", "yes"), (10, "Where?", "left"), (20, "Which organ?", "Lung")],
    )


def rad_osf(root: Path) -> None:
    rows = [
        {
            "qid": n,
            "image_name": f"s{n}.jpg",
            "question": "q?",
            "answer": 5 if n == 1 else "yes",
            "phrase_type": kind,
            "answer_type": "CLOSED ",
            "question_type": "PRES",
            "image_organ": "CHEST",
        }
        for n, kind in enumerate(["test_freeform", "test_para", "freeform"])
    ]
    lay(root / "VQA_RAD Dataset Public.json", rows)
    for n in range(3):
        lay(root / f"VQA_RAD Image Folder/s{n}.jpg", png(n))


def path_vqa(root: Path) -> None:
    for n in range(3):
        hub(root / f"data/test-{n:05d}-of-00003-abc.parquet", [(n, "What?", "no"), (n + 9, "What?", "liver")])


def slake(root: Path) -> None:
    rows = [
        {
            "qid": n,
            "img_name": f"xmlab{n}/source.jpg",
            "question": q,
            "answer": a,
            "q_lang": lang,
            "location": "Lung",
            "modality": "CT",
            "answer_type": kind,
            "content_type": "Organ",
            "base_type": "vqa",
        }
        for n, (q, a, lang, kind) in enumerate(
            [
                ("Is it?", "Yes", "en", "CLOSED"),
                ("是吗?", "是", "zh", "CLOSED"),
                ("Where?", "Lung, Heart", "en", "OPEN"),
            ]
        )
    ]
    lay(root / "test.json", rows)
    for n in range(3):
        lay(root / f"imgs/xmlab{n}/source.jpg", png(n))


def omni(root: Path) -> None:
    for n in range(choices.SETS):
        row = {
            "question_id": "0",
            "question": "Which?",
            "gt_answer": "MRI",
            "image_path": f"Images/{n}.png",
            "option_A": "CT",
            "option_B": "MRI",
            "modality_type": "X-Ray",
            "question_type": "Modality",
        }
        lay(root / f"QA_information/Open-access/set {n}.json", [row])
        lay(root / f"Images/{n}.png", png(n))


def omni_parts(root: Path) -> None:
    for n in range(1, choices.PARTS + 1):
        tsv(
            root / f"part_{n}.tsv",
            ["index", "image", "question", "A", "B", "C", "D", "answer"],
            [["0", base64.b64encode(png(n)).decode(), "Which?", "CT", "MRI", "", "", "B"]],
        )


def gmai(root: Path) -> None:
    tsv(
        root / "GMAI-MMBench_VAL.tsv",
        [
            "index",
            "question",
            "image",
            "A",
            "B",
            "C",
            "answer",
            "clinical vqa task",
            "department",
            "category",
        ],
        [
            [
                "0",
                'What is\nin the "box"?',
                base64.b64encode(png(7)).decode(),
                "cyst",
                "mass",
                "",
                "B",
                "Counting",
                "P",
                "x",
            ],
            [
                "1",
                "What?",
                base64.b64encode(png(9)).decode(),
                "a",
                "b",
                "c",
                "C",
                "Severity Grading",
                "P",
                "x",
            ],
        ],
    )


def medxpert(root: Path) -> None:
    row = {
        "id": "MM-0",
        "question": "Who?\nAnswer Choices: (A) x (B) y",
        "options": {"B": "y", "A": "x"},
        "label": "B",
        "images": ["a.png", "b.png"],
        "medical_task": "Diagnosis",
        "body_system": "Skeletal",
        "question_type": "Reasoning",
    }
    lay(root / "MM/test.jsonl", json.dumps(row) + "\n")
    lay(root / "images/a.png")
    lay(root / "images/b.png")


def text_to_image(root: Path) -> None:
    for name in "cfp cxr ct his mri oct us endoscopy".split():
        lay(root / name / "metadata.csv", "file_name,text\n1.png,A picture.\n")
        lay(root / name / "1.png")


def bci(root: Path) -> None:
    for stain in ("HE", "IHC"):
        lay(root / stain / "test/00001_test_3+.png")


def ixi(root: Path) -> None:
    for quality in ("LQ", "HQ"):
        lay(root / "test" / quality / "1.png")
        volume(root / "test" / quality / "IXI002.nii.gz")


def brats(root: Path) -> None:
    case = "BraTS-GLI-00001-000"
    volume(root / case / f"{case}-t2w.nii.gz")
    volume(root / case / f"{case}-t2f.nii.gz", 1)


def icg(root: Path) -> None:
    pair = "i01s1-i02s2"
    folder = root / "mimic_cxr/pa/1/p10/p10000032" / pair
    lay(
        folder / f"{pair}.json",
        {
            "progression-description": "Edema grows.",
            "changes-of-findings": "More edema.",
            "subject-id": 10000032,
        },
    )
    for kind in ("ref", "flu"):
        lay(folder / f"{pair}-{kind}-reg.png", png(mode="L"))


def segmentation(root: Path) -> None:
    lay(root / "BUSI/labels.json", {"tumour": 255})
    lay(root / "BUSI/images/1.png")
    lay(root / "BUSI/masks/1.png", png(255, mode="L"))


def r2gen(root: Path) -> None:
    lay(
        root / "annotation.json",
        {
            "test": [
                {"id": "a", "report": "No change.", "image_path": ["p/1.png", "p/2.png"], "subject_id": 7},
                {"id": "b", "report": " ", "image_path": ["p/1.png"]},
            ]
        },
    )
    lay(root / "images/p/1.png")
    lay(root / "images/p/2.png")


def findings(root: Path) -> None:
    lay(root / "test.json", [{"findings": "Clear.", "impression": "", "image": "1.png"}])
    lay(root / "images/1.png")


CASES = {
    "vqa-rad": (rad, 3),
    "vqa-rad OSF": (rad_osf, 2),
    "pathvqa": (path_vqa, 6),
    "slake": (slake, 3),
    "slake-en": (slake, 2),
    "slake-zh": (slake, 1),
    "omnimedvqa": (omni, 42),
    "omnimedvqa TSV": (omni_parts, 30),
    "gmai-mmbench": (gmai, 2),
    "medxpertqa-mm": (medxpert, 1),
    "text-to-image": (text_to_image, 8),
    "bci": (bci, 1),
    "ixi-sr4": (ixi, 9),
    "brats23": (brats, 16),
    "icg-cxr": (icg, 1),
    "segmentation": (segmentation, 1),
    "mimic-cxr": (r2gen, 1),
    "iu-xray": (findings, 1),
}
