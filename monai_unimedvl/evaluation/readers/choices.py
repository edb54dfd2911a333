# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: OmniMedVQA (open access), GMAI-MMBench, MedXpertQA-MM."""

from __future__ import annotations

import hashlib
from pathlib import Path

from monai_unimedvl.evaluation.readers.base import (
    LETTERS,
    Item,
    Picture,
    folder_of,
    json_rows,
    present,
    tsv_rows,
)

SETS, PARTS = 42, 30  # JSON files of the open-access subset; TSV parts of the same in VLMEvalKit's layout
GMAI_FILE, GMAI_MD5 = "GMAI-MMBench_VAL.tsv", "254bd581627866f1c499d3d6b4422324"
SLICED = ("department", "perceptual granularity", "modality")
OMNI = "QA_information/Open-access"
RECIPES = {  # modality_type of OmniMedVQA -> recipe
    "ct(computed tomography)": "ct", "mr (mag-netic resonance imaging)": "mri", "x-ray": "xray",
    "ultrasound": "ultrasound", "fundus photography": "fundus", "microscopy images": "histopathology",
    "dermoscopy": "dermoscopy", "oct (optical coherence tomography": "oct", "endoscopy": "endoscopy",
}  # fmt: skip


def omnimedvqa(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """OmniMedVQA's open-access subset: QA_information/Open-access/*.json and Images/, or 30 TSV parts.

    Of the TSV parts every one is read, not the first 14; `groups["part"]` says which an item is from.
    """
    parts = {number: path for number in range(1, PARTS + 1) for path in _part(root, number)}
    if parts:
        return _parts(parts)
    folder = folder_of(root, f"{OMNI}/*.json") / OMNI
    files = sorted(folder.glob("*.json"))
    lost = SETS - len(files)
    missing = [f"{lost} of the {SETS} files of {OMNI}"] if lost > 0 else []
    items = []
    for path in files:
        for row in json_rows(path, ("question_id", "question", "gt_answer", "image_path")):
            options = tuple(str(row[f"option_{k}"]) for k in LETTERS if f"option_{k}" in row)
            items.append(
                Item(
                    f"{path.stem}/{row['question_id']}", str(row["question"]), str(row["gt_answer"]),
                    task="choice", answer_type="choice", options=options,
                    question_type=str(row.get("question_type", "")),
                    modality=RECIPES.get(str(row.get("modality_type", "")).strip().lower(), ""),
                    image=str(row["image_path"]),
                    groups={"set": path.stem, "modality type": str(row.get("modality_type", ""))},
                    pictures=(Picture(root / str(row["image_path"])),),
                )
            )  # fmt: skip
    kept, lost_pictures = present(items, root)
    return kept, [*missing, *lost_pictures]


def gmai(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """GMAI-MMBench's validation table, which holds its pictures; the test table has no answers."""
    path = folder_of(root, "*.tsv") / GMAI_FILE
    if not path.is_file():
        return [], [GMAI_FILE]
    items = []
    for row, picture in tsv_rows(path, ("index", "question", "answer", "A", "B")):
        options = tuple(row[k] for k in LETTERS if row.get(k, "").strip())
        items.append(
            Item(
                row["index"], row["question"], row["answer"], task="choice", answer_type="choice",
                options=options, question_type=row.get("clinical vqa task", row.get("category", "")),
                image=row["index"], groups={name: row[name] for name in SLICED if row.get(name)},
                pictures=(picture,),
            )
        )  # fmt: skip
    return items, []


def medxpertqa(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """MedXpertQA-MM: MM/test.jsonl and images/."""
    folder_of(root, "MM/*.jsonl", "*.jsonl")
    path = root / "MM" / f"{section}.jsonl"
    path = path if path.is_file() else root / f"{section}.jsonl"
    if not path.is_file():
        return [], [f"MM/{section}.jsonl"]
    items = []
    for row in json_rows(path, ("id", "question", "options", "label", "images")):
        items.append(
            Item(
                str(row["id"]), _bare(str(row["question"])), str(row["label"]), task="choice",
                answer_type="choice", question_type=str(row.get("question_type", "")),
                options=tuple(str(row["options"][k]) for k in sorted(row["options"])),
                anatomy=str(row.get("body_system", "")), image=" ".join(map(str, row["images"])),
                groups={"task": str(row.get("medical_task", ""))},
                pictures=tuple(Picture(root / "images" / str(name)) for name in row["images"]),
            )
        )  # fmt: skip
    return present(items, root)


def digest(path: Path) -> str:
    """md5 of a file, as the publishers of tables state it."""
    made = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            made.update(part)
    return made.hexdigest()


def _bare(question: str) -> str:
    """A question without the options that its text repeats."""
    return question.split("\nAnswer Choices:")[0].strip()


def _part(root: Path, number: int) -> list[Path]:
    names = (f"part_{number}.tsv", f"omnimedbench_part_{number}.tsv")
    return [root / name for name in names if (root / name).is_file()][:1]


def _parts(parts: dict[int, Path]) -> tuple[list[Item], list[str]]:
    items = []
    for number, path in parts.items():
        for row, picture in tsv_rows(path, ("index", "question", "answer", "A", "B")):
            items.append(
                Item(
                    f"part_{number}/{row['index']}", row["question"], row["answer"], task="choice",
                    answer_type="choice", options=tuple(row[k] for k in "ABCD" if row.get(k, "").strip()),
                    question_type=row.get("question_type", row.get("category", "")),
                    image=row.get("image_path", ""), groups={"part": str(number)}, pictures=(picture,),
                )
            )  # fmt: skip
    return items, [f"part_{number}.tsv" for number in range(1, PARTS + 1) if number not in parts]
