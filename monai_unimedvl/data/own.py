# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own data -> dialogues to fine-tune on. Three layouts, and what they hold decides.

    questions.csv       columns image, question, answer (or image, report; or image, instruction, target; or
                        prompt, target), paths relative to the folder; if you like, patient and section
    images/  masks/     pairs of one name, label maps, and labels.json: {"nuclei": 255}
    source/  target/    pairs of one name, and instruction.txt: "Turn this T1 MRI into T2."

Pictures, NIfTI volumes and DICOM series are read by a recipe; of volumes some slices are taken. Where no
section is given, some patients (without that column: images) are held out, always the same ones.
  C channels   H rows   W columns
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS
from monai_unimedvl.data.augment import augment
from monai_unimedvl.data.mixture import Dropout, Mixture, Pack, Stream
from monai_unimedvl.inferers.context import segments_for
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Segment, Turn, count_tokens
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms import Recipe, recipe
from monai_unimedvl.transforms.masks import Legend
from monai_unimedvl.transforms.onto import labels_onto, picture_onto
from monai_unimedvl.transforms.read import DICOM, NIFTI, PICTURES

SECTIONS = ("train", "val", "all")
LAYOUTS = "questions.csv, or images/ and masks/ with labels.json, or source/ and target/ with instruction.txt"
COLOURS = [
    (230, 60, 60), (60, 180, 75), (65, 105, 225), (245, 215, 60), (240, 130, 50), (145, 60, 200),
    (70, 220, 230), (240, 60, 220), (255, 255, 255), (130, 130, 130), (128, 80, 30), (170, 255, 195),
]  # fmt: skip
KNOWN = {name: colour for legend in LEGENDS.values() for name, colour in legend.items()}
AUGMENTED_AS = {"answer": "vqa", "mask": "seg-tumour", "pair": "t1-to-t2", "words": "text-to-image"}
DROPOUTS = {"answer": Dropout(), "words": Dropout(text=0.1)}  # drawing from an image: 5 % of each condition
# words and endings of names that a mirrored picture would belie: Parotid_L, lh, links
SIDES = re.compile(
    r"left|right|(?<![a-z0-9])[lr](?:h|t)?(?![a-z0-9])|links|rechts|gauche|droite|izquierd|derech|sinist|dext|左|右"
)
PLACES = ("<box>", "<point>")  # numbers that a moved picture would belie


def list_own(
    folder: str | Path | None, section: str = "all", *, instruction: str | None = None, slices: int = 8,
    holdout: float = 0.2, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The items of a folder, as MONAI's data lists are: mappings with "kind", "words" and paths.

    Args:
        section: "train", "val" (held out) or "all".
        instruction: in place of instruction.txt, or of what labels.json suggests.
        slices: of each volume.
        holdout: share of the patients, or images, that is held out, where there is no column `section`.
        seed: of the choice.

    Raises:
        ValueError: no such folder or layout, a file or a line that does not fit, nothing in the section.
    """
    if folder is None:
        raise ValueError(f"dataset_dir is not given, expected a folder with {LAYOUTS}: pass it.")
    if not Path(folder).is_dir():
        raise ValueError(f"dataset_dir is {str(folder)!r}, expected a folder with {LAYOUTS}: check the path.")
    if section not in SECTIONS or not 0 <= holdout < 1:
        raise ValueError(
            f"section is {section!r} and holdout {holdout}, expected one of {', '.join(SECTIONS)} and a "
            "share below 1: change them."
        )
    folder = Path(folder)
    if (folder / "questions.csv").is_file():
        items = list(_from_table(folder, slices))
    elif (folder / "images").is_dir() and (folder / "masks").is_dir():
        items = _from_pairs(folder, "images", "masks", _asked_mask(folder, instruction), slices)
    elif (folder / "source").is_dir() and (folder / "target").is_dir():
        items = _from_pairs(folder, "source", "target", _asked_pair(folder, instruction), slices)
    else:
        raise ValueError(
            f"dataset_dir {folder.name} has none of the known layouts, expected {LAYOUTS}: lay it out so."
        )
    chosen = [item for item in _sections(items, holdout, seed) if section in ("all", item["section"])]
    if not chosen:
        raise ValueError(
            f"dataset_dir {folder.name} has no item in section {section!r} of {len(items)}: add some, or "
            "change holdout."
        )
    return chosen


def asked_for(values: Mapping[str, int], instruction: str | None = None) -> dict[str, Any]:
    """Words, legend and label values of masks with these names: the parts that all their items share.

    Args:
        values: name -> value in the masks.
        instruction: in place of the words that follow from the names.

    Raises:
        ValueError: more names than there are colours.
    """
    free = [colour for colour in COLOURS if colour not in [KNOWN.get(name) for name in values]]
    if sum(name not in KNOWN for name in values) > len(free):
        raise ValueError(
            f"{len(values)} labels came, expected {len(COLOURS)} at most: train on fewer at once."
        )
    legend = {name: KNOWN.get(name) or free.pop(0) for name in values}
    task = next((task for task, known in LEGENDS.items() if list(known) == list(values)), None)
    words = instruction or (INSTRUCTIONS[task] if task else f"Segment the {_listed(list(values))}.")
    return {"kind": "mask", "words": words, "legend": legend, "values": dict(values)}


def subject_of(item: Mapping[str, Any]) -> str:
    """Whom an item is of: its patient, or where nobody says, its image, whose name may be a patient's."""
    return str(item.get("patient") or _stem(Path(item.get("image") or item.get("target") or "")))


def list_kept(
    path: str | Path, section: str = "all", *, holdout: float = 0.2, seed: int = 0, slices: int = 8
) -> list[dict[str, Any]]:
    """The items in a JSON file, as `list_own` gives them: for those who keep their data in no folder of ours.

    Where nothing can be held out, as of one patient, "val" is what "train" is.

    Args: as of `list_own`; of volumes the file has one item.

    Raises:
        ValueError: no such file, or an empty one.
    """
    try:
        found = json.loads(Path(path).read_text("utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{Path(path).name} is no list of items, expected JSON: write it anew.") from error
    every = [one for item in found for one in (_slices(item, slices) if "target" in item else [item])]
    items = list(_sections(every, holdout, seed))
    if not items:
        raise ValueError(f"{Path(path).name} holds no item, expected some to learn from: label images first.")
    chosen = [item for item in items if section in ("all", item["section"])]
    return chosen or [item for item in items if item["section"] == "train"]


class ReadOwn(Transform):
    """An item of `list_own` -> the same with "turns": the dialogue that it teaches.

    Args:
        modality: recipe of the images that are read.
        target_modality: recipe of the images to be drawn, where it is another one.
        settings: of both recipes.
    """

    def __init__(self, modality: str, *, target_modality: str | None = None, **settings: Any) -> None:
        self.modality, self.target_modality = modality, target_modality or modality
        self.settings = {"field": "square", **settings}

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """{"kind", "words", ...} -> the same with "turns", and for masks "mask" (H, W) of 0..K"""
        item, asked = dict(data), data["words"]
        shown = None if item.get("image") is None else self._picture(item, "image", self.modality)
        question: list[str | Tensor] = [asked] if shown is None else [shown.as_subclass(Tensor), asked]
        if item["kind"] == "answer":
            told: str | Tensor = item["answer"]
        elif item["kind"] == "mask" and shown is not None:
            legend = Legend({name: tuple(colour) for name, colour in item["legend"].items()})
            item["mask"] = labels_onto(item["target"], shown, list(item["values"].values()))
            told = legend.coloured(item["mask"])
        else:
            told = self._picture(item, "target", self.target_modality, onto=shown)
        answer = told if isinstance(told, str) else told.as_subclass(Tensor)
        return {**item, "turns": [Turn("user", question), Turn("assistant", [answer])]}

    def _picture(self, item: Mapping[str, Any], key: str, modality: str, onto: Any = None) -> Any:
        """The picture or slice under a key; of a target, on the pixels of the picture it belongs to."""
        settings = dict(self.settings) if onto is None else {**self.settings, "field": None}
        place, count = item.get("slice", (0, 1))
        chain = _with(modality, settings, {"count": count, "policy": "uniform"})
        pictures = chain(item[key])
        if len(pictures) <= place:
            raise ValueError(
                f"{Path(item[key]).name} has {len(pictures)} slices, expected {count}: lower slices."
            )
        return pictures[place] if onto is None else picture_onto(pictures[place], onto)


def own_mixture(
    dataset: Sequence[Mapping[str, Any]], network: UniMedVL, tokenizer: Tokenizer, *, budget: int = 2000,
    seed: int = 0, lanes: int = 1, augmented: bool = True,
) -> Mixture:  # fmt: skip
    """Packs of a dataset of read items, at the image sizes of the network, with dropout of conditions.

    Args:
        dataset: gives items with "turns", such as `monai.data.CacheDataset(list_own(...), ReadOwn(...))`.
        budget: tokens a pack. lanes: see `Mixture`.
        augmented: small changes to images that keep every word true; off for validation.
    """
    kinds: dict[str, list[int]] = {}
    listed = getattr(dataset, "data", dataset)  # MONAI's datasets keep what is not read yet
    for place in range(len(dataset)):
        kinds.setdefault(listed[place]["kind"], []).append(place)
    streams = []
    for kind, places in sorted(kinds.items()):

        def read(
            index: int, generator: torch.Generator, kind: str = kind, at: list[int] = places
        ) -> list[Turn]:
            item = dataset[at[index]]
            said = " ".join([item["words"], str(item.get("answer", "")), *item.get("legend", ())]).lower()
            placed = any(mark in said for mark in PLACES)
            sided = kind != "answer" and SIDES.search(said)
            if not augmented or placed or sided:
                return list(item["turns"])
            return augment(item["turns"], generator, task=AUGMENTED_AS[kind])

        dropout = DROPOUTS.get(kind, Dropout(0.05, 0.05, 0.05)) if augmented else Dropout()
        draws = kind != "answer"
        streams.append(Stream(kind, read, len(places), float(len(places)), dropout, draws=draws))
    return Mixture(streams, segments_for(network, tokenizer), budget=budget, seed=seed, lanes=lanes)


def own_packs(
    dataset: Sequence[Mapping[str, Any]], network: UniMedVL, tokenizer: Tokenizer, *, budget: int = 2000
) -> list[Pack]:
    """Every item of a dataset once, as it is, in packs: to validate on, always the same."""
    mixture = own_mixture(dataset, network, tokenizer, budget=budget, augmented=False)
    draws = {stream.name: stream.draws for stream in mixture.streams}
    packs: list[Pack] = []
    samples: list[list[Segment]] = []
    for item in [*(dataset[place] for place in range(len(dataset))), None]:
        segments = [] if item is None else mixture.to_segments(item["turns"], draw=draws[item["kind"]])
        full = sum(map(count_tokens, [*samples, segments])) > budget
        if samples and (full or item is None):
            origins = [f"own/{n}/0" for n in range(len(samples))]
            packs.append(Pack(samples, origins, sum(map(count_tokens, samples)), {}, number=len(packs)))
            samples = []
        samples.append(segments)
    return packs


def _from_table(folder: Path, slices: int) -> Iterator[dict[str, Any]]:
    """The lines of questions.csv."""
    with (folder / "questions.csv").open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream)
        columns = set(table.fieldnames or ())
        wanted = "image, question, answer | image, report | image, instruction, target | prompt, target"
        if not columns & {"question", "report", "instruction", "prompt"}:
            raise ValueError(
                f"questions.csv has columns {', '.join(sorted(columns)) or 'none'}, expected {wanted}: "
                "rename them."
            )
        for row in table:
            line = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
            where = f"questions.csv line {table.line_num}"
            words = next((line[k] for k in ("question", "instruction", "prompt") if line.get(k)), "")
            answer, target = line.get("answer") or line.get("report", ""), line.get("target", "")
            words = words or (INSTRUCTIONS["caption"] if line.get("report") else "")
            if not words or bool(answer) == bool(target):
                raise ValueError(
                    f"{where} does not say both what is asked and what is true, expected {wanted}."
                )
            if not line.get("image") and not line.get("prompt"):
                raise ValueError(f"{where} names no image, expected a path in the folder: add it.")
            kind = "answer" if answer else "pair" if line.get("image") else "words"
            item: dict[str, Any] = {"kind": kind, "words": words, "patient": line.get("patient", "")}
            if line.get("section"):
                if line["section"] not in SECTIONS[:2]:
                    raise ValueError(
                        f"{where} has section {line['section']!r}, expected train or val: mend it."
                    )
                item["section"] = line["section"]
            for key in ("image", "target"):
                if line.get(key):
                    item[key] = str(_inside(folder, line[key], where))
            if answer:
                item["answer"] = answer
            yield from _slices(item, slices if target else 1)


def _from_pairs(
    folder: Path, first: str, second: str, asked: dict[str, Any], slices: int
) -> list[dict[str, Any]]:
    """Files of one name in two folders."""
    names = [{_stem(path): path for path in _images(folder / name)} for name in (first, second)]
    lonely = sorted(set(names[0]) ^ set(names[1]))
    if lonely or not names[0]:
        what = f"{lonely[0]!r} is in one of them only" if lonely else "both are empty"
        raise ValueError(f"{first}/ and {second}/ of {folder.name} do not pair, {what}: give pairs one name.")
    items: list[dict[str, Any]] = []
    for stem in sorted(names[0]):
        item = {**asked, "image": str(names[0][stem]), "target": str(names[1][stem])}
        items += _slices(item, slices)
    return items


def _asked_mask(folder: Path, instruction: str | None) -> dict[str, Any]:
    """Words, legend and label values of a mask folder."""
    file = folder / "labels.json"
    try:
        values = json.loads(file.read_text("utf8"))
        right = isinstance(values, dict) and values and all(isinstance(v, int) and v for v in values.values())
    except (OSError, ValueError):
        right = False
    if not right:
        raise ValueError(
            f"{folder.name}/labels.json is missing or no list of labels, expected name -> value in the "
            "masks, such "
            'as {"nuclei": 255}: write it.'
        )
    return asked_for(values, instruction)


def _asked_pair(folder: Path, instruction: str | None) -> dict[str, Any]:
    file = folder / "instruction.txt"
    words = instruction or (file.read_text("utf8").strip() if file.is_file() else "")
    if not words:
        raise ValueError(
            f"{folder.name}/instruction.txt is missing or empty, expected words such as 'Turn this T1 MRI "
            "into T2.': write it, or pass --instruction."
        )
    return {"kind": "pair", "words": words}


def _slices(item: dict[str, Any], slices: int) -> Iterator[dict[str, Any]]:
    """The item itself; of a volume one item a slice, with "slice": (place, count)."""
    path = Path(item.get("image") or item["target"])
    if path.is_dir() or path.name.lower().endswith(NIFTI):
        yield from ({**item, "slice": (place, slices)} for place in range(slices))
    else:
        yield item


def _sections(items: Sequence[dict[str, Any]], holdout: float, seed: int) -> Iterator[dict[str, Any]]:
    """The items with a section each: the table's, or by patient (without that: by image)."""
    found = {subject_of(item) for item in items if "section" not in item}
    groups = sorted(found, key=lambda g: _mixed(g, seed))
    held = set(groups[: math.ceil(holdout * len(groups))] if len(groups) > 1 else ())
    for item in items:
        yield {"section": "val" if subject_of(item) in held else "train", **item}


def _mixed(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {group}".encode()).hexdigest()


def _images(folder: Path) -> list[Path]:
    known = (*PICTURES, *NIFTI, *DICOM)
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return [path for path in found if path.is_dir() or path.name.lower().endswith(known)]


def _inside(folder: Path, name: str, where: str) -> Path:
    """A file that a table names; it must lie in the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{where} names {name!r}, which is outside the folder: put the file inside.")
    if not path.exists():
        raise ValueError(f"{where} names {name!r}, which is not in {folder.name}: check the path.")
    return path


def _stem(path: Path) -> str:
    known = (*NIFTI, *PICTURES, *DICOM)
    ending = next((end for end in known if path.name.lower().endswith(end)), "") if path.is_file() else ""
    return path.name[: len(path.name) - len(ending)]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _with(modality: str, settings: dict[str, Any], wanted: dict[str, Any]) -> Recipe:
    """A recipe with settings, and as many of the wanted ones as it has."""
    known = recipe(modality).settings
    return recipe(modality, **settings, **{key: value for key, value in wanted.items() if key in known})
