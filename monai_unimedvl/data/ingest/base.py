# SPDX-License-Identifier: Apache-2.0
"""What every kind of source shares: options, pseudonyms, pictures written once, and reasons without names.

Pictures are written as PNG under `root/images`, named by the hash of their bytes, so that a second run writes
nothing and metadata of the source (EXIF, headers) stays behind. File names may hold the name of a patient:
records have none, and rejects say the place of a file in the order of names, unless `show_names` is set.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monai.data import MetaTensor
from PIL import Image
from torch import Tensor

from monai_unimedvl.atomic import machine_fault, new_file
from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.ingest.large import cut
from monai_unimedvl.data.ingest.words import code_of, without_identifiers, without_names
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Record, Reject, pseudonym, stable_id
from monai_unimedvl.data.step import Item, Source, option
from monai_unimedvl.packages import MissingPackage
from monai_unimedvl.transforms import Recipe, modalities, recipe
from monai_unimedvl.transforms.deidentify import SECRET
from monai_unimedvl.transforms.image import MIN_SIDE

PUBLIC = "public"  # key of the pseudonyms of patients who are published under their ids
MAX_TEXT = 1_000_000  # characters; a longer one is no report
IDENTIFIERS = ("remove", "reject", "keep")
RAW = {"main_task_type": "image", "sub_task_type": "image"}  # of a record without words


@dataclass(frozen=True, kw_only=True)
class Ingest(Source):
    """Options that all sources have.

    Raises:
        ValueError: a folder, recipe or setting that does not fit.
    """

    path: str = option(about="folder or file to read")
    root: str = option(about="folder of the corpus; pictures go to its images/")
    dataset: str = option(about="name of the dataset that the records belong to")
    licence: str = option("unknown", "SPDX identifier of the licence, such as CC-BY-4.0")
    origin: str = option("", "where the dataset is from, a name or an address (default: its name)")
    modality: str = option("", "recipe of the pictures, such as mri, ct, xray (`unimedvl recipes`)")
    contrast: str = option("", 'what is shown, in words, such as "T2-weighted MRI"')
    organ: str = option("", "body region or organ, such as brain")
    slices: int = option(8, "of a volume or a run of frames at most that many")
    policy: str = option("uniform", "which slices: uniform, center or all")
    plane: str = option("axial", "of a volume's slices: axial, coronal or sagittal")
    settings: Mapping[str, Any] = option(None, "other settings of the recipe, as window=lung")
    identifiers: str = option("remove", "what looks like an identifier in texts: remove, reject or keep")
    public: bool = option(False, "the patients are public research subjects: pseudonyms need no secret")
    show_names: bool = option(False, "name files in rejects; they may hold names of patients")

    needs_modality: ClassVar[bool] = True
    as_they_are: ClassVar[bool] = False  # pictures are taken without a recipe

    def __post_init__(self) -> None:
        if not Path(self.path).exists():
            raise ValueError(f"{self.path} does not exist, expected a folder or file: check the path.")
        if self.identifiers not in IDENTIFIERS:
            raise ValueError(
                f"identifiers is {self.identifiers!r}, expected one of {', '.join(IDENTIFIERS)}: choose one."
            )
        if self.slices < 1:
            raise ValueError(f"slices is {self.slices}, expected 1 or more: raise it.")
        if self.needs_modality and not self.modality:
            raise ValueError(
                f"{self.name} has no modality, expected one of {', '.join(modalities())}: name it, since the "
                "files do not say how their values are to be shown."
            )
        if self.modality and not self.as_they_are:
            self.chain(self.modality)  # it and its settings are checked now, not at the first file

    def chain(self, modality: str, **more: Any) -> Recipe:
        """The recipe of a modality with the policy for its slices, where it has one."""
        wanted = {"count": self.slices, "policy": self.policy, "plane": self.plane, **more}
        return _recipe(modality, tuple(sorted(wanted.items())), tuple(sorted((self.settings or {}).items())))

    def pictures(self, source: Any, modality: str = "", **more: Any) -> Sequence[MetaTensor]:
        """What a recipe makes of a file or a tensor; all slices where there are fewer than wanted.

        Of a large volume each picture is made when it is asked for.

        Raises:
            ValueError: it cannot be read.
        """
        chain = self.chain(modality or self.modality, **more)
        try:
            return cut(chain, source)
        except ValueError as error:
            if "lower count or use policy" not in str(error):
                raise
            return cut(self.chain(modality or self.modality, **{**more, "policy": "all"}), source)

    def save(self, picture: MetaTensor, *, folder: str = "images") -> ImageFile:
        """Write a picture (3, H, W) in [0, 1] as PNG, and say where it was cut from."""
        values = (picture.as_subclass(Tensor).movedim(0, -1) * 255).round().clamp(0, 255).byte().numpy()
        return self.save_pixels(values, place_of(picture, self.policy), folder=folder)

    def save_pixels(
        self, values: np.ndarray, place: Mapping[str, Any] | None = None, *, folder: str = "images"
    ) -> ImageFile:
        """Write (H, W) or (H, W, 3) uint8 as PNG; of three equal colours one is kept."""
        if values.ndim == 3 and np.array_equal(values[..., 0], values[..., 1]) \
                and np.array_equal(values[..., 0], values[..., 2]):  # fmt: skip
            values = values[..., 0]
        name = write_png(np.ascontiguousarray(values), Path(self.root) / folder)
        return ImageFile(f"{folder}/{name}", values.shape[0], values.shape[1], place or {})

    def save_plain(self, content: bytes) -> ImageFile:
        """Write a picture as it is, its 8 or 16 bits as 8, without what else its file held.

        Raises:
            InvalidRecord: it is damaged, too large or too small.
        """
        values = pixels(ImageFile("picture", *size_of(content), content=content))
        if min(values.shape[1:]) < MIN_SIDE:
            raise InvalidRecord(
                "too-small",
                f"an image has {values.shape[2]}x{values.shape[1]} pixels, expected {MIN_SIDE} a side.",
            )
        return self.save_pixels((values.movedim(0, -1) * 255).round().byte().numpy())

    def record(self, key: Sequence[Any], **values: Any) -> Record:
        """A record of this source; `key` is what tells it from the others of the dataset."""
        facts = {"contrast": self.contrast, "organ": self.organ, **values.pop("facts", {})}
        provenance = {"input_img": {"by": self.name, "policy": self.policy}, **values.pop("provenance", {})}
        if not values.get("input_img"):
            provenance.pop("input_img")
        return Record(
            id=stable_id(self.dataset, self.name, *key),
            modality=values.pop("modality", "") or self.modality or "unknown",
            dataset=self.dataset,
            licence=values.pop("licence", "") or self.licence,
            source=self.origin or self.dataset,
            facts={name: value for name, value in facts.items() if value},
            provenance=provenance,
            **{**RAW, **values},
        )

    @functools.cached_property
    def secret(self) -> str:
        """The key of the pseudonyms.

        Raises:
            ValueError: there is none.
        """
        found = PUBLIC if self.public else os.environ.get(SECRET, "")
        if not found:
            raise ValueError(
                f"{self.name} has no secret for the pseudonyms of patients, expected one in the environment "
                f"variable {SECRET}: set it to the output of `openssl rand -hex 32` and keep it, or say that "
                "the patients are public research subjects with --public."
            )
        return found

    def patient(self, identifier: str) -> str:
        """Pseudonym of a patient, or "" where none is known."""
        return pseudonym("p", identifier, self.secret) if identifier else ""

    def study(self, identifier: str) -> str:
        """Pseudonym of a study, or "" where none is known."""
        return pseudonym("s", identifier, self.secret) if identifier else ""

    def text(self, words: str, what: str = "the text") -> str:
        """Words for a record, what looks like an identifier removed, rejected or kept as asked.

        Raises:
            InvalidRecord: it is too long, or holds what looks like an identifier.
        """
        if len(words) > MAX_TEXT:
            raise InvalidRecord(
                "text-too-long", f"{what} has {len(words):,} characters, expected at most {MAX_TEXT:,}."
            )
        if re.search("[\ud800-\udfff\0\ufffd]", words):
            raise InvalidRecord("bad-encoding", f"{what} holds bytes that are no text, expected UTF-8.")
        clean, found = (words, 0) if self.identifiers == "keep" else without_identifiers(words)
        if found and self.identifiers == "reject":
            raise InvalidRecord(
                "identifier", f"{what} holds {found} things that look like an identifier, expected none."
            )
        return clean.strip()

    def place(self, path: Path | str, at: str = "") -> str:
        """How a reject names a file: by its place among the files, or by its name where that is asked for."""
        path = Path(path)
        if self.show_names:
            return path.name + at
        order = self.order.get(str(path))
        return (f"file {order + 1} of {len(self.order)} by name" if order is not None else "the file") + at

    @functools.cached_property
    def order(self) -> dict[str, int]:
        """Path -> place in the order of names."""
        return {str(path): place for place, path in enumerate(self.files())}

    def files(self) -> list[Path]:
        """The files to read, in the order of names; links that lead out of the folder are left out."""
        return list(under(Path(self.path)))

    def refused(
        self, error: ValueError, path: Path | str = "", id: str = "", at: str = "",
        others: Sequence[Path | str] = (),
    ) -> Reject:  # fmt: skip
        """The reject of a file that cannot be read; its sentence names neither it nor `others`, nor a folder.

        Raises:
            MissingPackage: as it came: no file is at fault. Stop: nor where a disk is full.
        """
        if isinstance(error, MissingPackage) or machine_fault(error):
            self.refusal(error)  # raises
        said = error.reason if isinstance(error, InvalidRecord) and not self.show_names else str(error)
        reason = said if self.show_names else without_names(said, path, *others)
        code = error.code if isinstance(error, InvalidRecord) else code_of(str(error))
        return Reject(code, reason, id, self.name, self.place(path, at) if path else at)

    def guarded(self, items: Iterable[Item], path: Path | str, at: str = "") -> Iterator[Item]:
        """The items, and a reject for the ValueError that ends them."""
        try:
            yield from items
        except ValueError as error:
            yield self.refused(error, path, at=at)


def size_of(content: bytes) -> tuple[int, int]:
    """(height, width) of a picture, turned as its file says.

    Raises:
        InvalidRecord: it is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as file:
                turned = file.getexif().get(274, 1) in (5, 6, 7, 8)  # the tag of orientation
                return (file.width, file.height) if turned else (file.height, file.width)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise InvalidRecord("image-damaged", "an image cannot be read, expected a picture.") from error


def place_of(picture: MetaTensor, policy: str = "") -> dict[str, Any]:
    """Where a picture was cut from: slice, plane, position in RAS mm, mm a pixel, affine to mm."""
    source = picture.meta.get("source") or {}
    place: dict[str, Any] = {}
    if source.get("count", 1) > 1:
        place |= {"index": source["index"], "count": source["count"]}
        place |= {"policy": policy} if policy else {}
    if source.get("plane"):
        place["plane"] = source["plane"]
    if source.get("affine") is not None:
        affine = picture.affine.numpy().astype(float)
        height, width = picture.shape[1:]
        middle = affine @ [(height - 1) / 2, (width - 1) / 2, 0, 1]
        place["position_mm"] = middle[:3].round(3).tolist()
        place["spacing_mm"] = np.linalg.norm(affine[:3, :2], axis=0).round(4).tolist()
        place["affine"] = affine[:3].round(5).tolist()
    return place


def patient_left(picture: MetaTensor) -> str:
    """Where the patient's left lies on a picture whose place is known: "right", "left", or "" for neither."""
    if (picture.meta.get("source") or {}).get("affine") is None:
        return ""
    across = picture.affine.numpy()[:3, 1]  # mm towards R, A, S from one column to the next
    if abs(across[0]) < 0.9 * float(np.linalg.norm(across)):
        return ""
    return "left" if across[0] > 0 else "right"


def write_png(pixels: np.ndarray, folder: Path) -> str:
    """Write (H, W) or (H, W, 3) uint8 under the hash of its pixels; returns "ab/ab...png"."""
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    path = folder / digest[:2] / f"{digest[:24]}.png"
    if not path.is_file():
        with new_file(path) as part:
            Image.fromarray(pixels).save(part, "PNG")
    return f"{digest[:2]}/{path.name}"


def digest_of(*paths: Path) -> str:
    """24 hex digits of the bytes of files."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()[:24]


def under(folder: Path) -> Iterator[Path]:
    """Every file below a folder in the order of names, hidden ones and links out of it left out."""
    if folder.is_file():
        yield folder
        return
    inside = os.path.realpath(folder)
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(here) / name
            if not name.startswith(".") and within(path, inside) and path.is_file():
                yield path


def within(path: Path, folder: Path | str) -> bool:
    """Whether a path leads into a folder; `realpath` also takes links that go round in a circle."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def inside(folder: Path, name: str) -> Path:
    """A file that a table names, in the folder.

    Raises:
        InvalidRecord: it is not there, or lies outside.
    """
    if not name or "\0" in name:
        raise InvalidRecord("image-missing", "a row names no image, expected a path in the folder.")
    path = folder / name
    try:
        inner = within(path, folder)
        there = inner and path.is_file()
    except (OSError, ValueError) as error:  # a name that the file system refuses
        raise InvalidRecord("image-missing", "a row names an image that cannot be a file name.") from error
    if not inner:
        raise InvalidRecord(
            "path-outside", "a row names an image outside of the folder, expected one inside."
        )
    if not there:
        raise InvalidRecord(
            "image-missing", "a row names an image that is not in the folder: check the path."
        )
    return path


def stem(path: Path) -> str:
    """The name without its endings, also of .nii.gz and .seg.nrrd."""
    return re.sub(r"(\.nii\.gz|\.seg\.nrrd|\.[^.]+)$", "", path.name, flags=re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def _recipe(modality: str, wanted: tuple[Any, ...], given: tuple[Any, ...]) -> Recipe:
    known = recipe(modality).settings
    return recipe(modality, **{**{k: v for k, v in wanted if k in known}, **dict(given)})
