# SPDX-License-Identifier: Apache-2.0
"""What MONAI's own engines need to run the model: prompts out of batches, one step.

`SupervisedEvaluator` and `SupervisedTrainer` stay as MONAI made them. Switch their `decollate` off: a batch
of prompts and a pack are not tensors that could be taken apart along their first axis.
  B pictures of a batch   H rows   W columns
"""

from __future__ import annotations

import logging
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor, decollate_batch
from monai.engines import PrepareBatch
from monai.engines.utils import IterationEvents
from monai.transforms import MapTransform
from monai.utils.enums import CommonKeys
from torch import Tensor

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.sequence import Marks, Prompt, Segment, Turn, count_tokens
from monai_unimedvl.training.objective import VALIDATION, Losses, Objective, pack_generator
from monai_unimedvl.training.replay import Guard
from monai_unimedvl.training.results import FILE
from monai_unimedvl.training.results import SaveResults as SaveResults  # bundles name it here
from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.dicom import holds_dicom, series_uids
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.nrrd import NRRD
from monai_unimedvl.transforms.read import DICOM, NIFTI, PICTURES
from monai_unimedvl.transforms.video import VIDEOS

logger = logging.getLogger(__name__)


class PreparePrompts(PrepareBatch):
    """A batch of pictures and a text -> prompts, as the inferers read them.

    Args:
        text: the question or instruction; the same for each picture unless the batch has its own under `key`.
        image: key of the pictures (B, 3, H, W) in [0, 1]; None makes prompts of the text alone.
        key: of the batch's own texts.

    Raises:
        ValueError: the text is empty.
    """

    def __init__(self, text: str, *, image: str | None = "image", key: str = "text") -> None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"PreparePrompts got text={text!r}, expected some words: say what is asked.")
        self.text, self.image, self.key = text, image, key

    def __call__(  # type: ignore[override]
        self, batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[list[Prompt], Any]:
        """B prompts, and what lies under "label". Pictures stay where they are: the network moves its tokens.

        A batch of MONAI's loader gives pictures that know their file and what was done to their pixels.

        Raises:
            ValueError: no pictures, or pictures of another shape.
        """
        label = batchdata.get(CommonKeys.LABEL)
        if self.image is None:
            return [[self.text]], label
        images = batchdata.get(self.image)
        if not isinstance(images, Tensor) or images.ndim != 4:
            came = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"PreparePrompts got {came} under {self.image!r}, expected pictures (B, 3, H, W): check the "
                "preprocessing, and set the loader's batch_size to 1 where sizes differ."
            )
        texts = batchdata.get(self.key, [self.text] * len(images))
        batched = isinstance(images, MetaTensor) and images.is_batch
        pictures = decollate_batch(images) if batched else images.as_subclass(Tensor)
        return [[picture, text] for picture, text in zip(pictures, texts, strict=True)], label


class ByRecipe(MapTransform):
    """Preprocessing: a file by the recipe of its modality; one mapping for each slice or frame of it.

    A picture's meta keeps its file and, of several slices, its index; what the recipe did to its pixels stays
    in `applied_operations`, for `AtSourceSized`. MONAI's DataLoader takes the lists apart.

    Args:
        keys: of the paths.
        modality, settings: as `recipe` has them.
    """

    def __init__(self, keys: Any, modality: str, **settings: Any) -> None:
        super().__init__(keys)
        self.recipe = recipe(modality, **settings)

    def __call__(self, data: Mapping[Any, Any]) -> list[dict[Any, Any]]:
        """{key: path} -> [{key: (3, H, W) in [0, 1]}, ...]"""
        found = []
        for key in self.key_iterator(data):
            for picture in self.recipe(data[key]):
                source = picture.meta["source"]
                index = source["index"] if source["count"] > 1 else -1
                image = MetaTensor(
                    picture.as_tensor(), affine=picture.affine, meta={FILE: str(data[key]), "slice": index},
                    applied_operations=picture.applied_operations,
                )  # fmt: skip
                found.append({**data, key: image})
        return found


class AtSourceSized(MapTransform):
    """Postprocessing: drawings (3, h, w) on the pixels of the files or slices they were drawn from.

    Of several for one prompt each is put back: on its own picture where there are as many, else the last.
    Texts stay, and so does what was drawn from words alone. Thick slices seen from the side keep the
    proportions that they have for the eye.

    Args:
        keys: of the drawings.
        prompts: key of the prompts, as `PreparePrompts` makes them of what `ByRecipe` read.
    """

    def __init__(self, keys: Any, prompts: str = CommonKeys.IMAGE) -> None:
        super().__init__(keys)
        self.prompts = prompts

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """A new mapping with the drawings in the list under each key put back."""
        result = dict(data)
        for key in self.key_iterator(result):
            pairs = zip(result[key], result[self.prompts], strict=True)
            result[key] = [_put_back(made, prompt) for made, prompt in pairs]
        return result


class PreparePacks(PrepareBatch):
    """`prepare_batch` of training and validation: a pack as it is, or a batch of MONAI's own made into one.

    A batch has pictures (B, 3, H, W) in [0, 1] or none, a question each, and an answer or a picture to draw.

    Args:
        to_segments: dialogue -> segments; None takes packs only.
        image, question, answer, target: keys of a batch; `answer` holds texts, `target` pictures to draw.

    Raises:
        ValueError: a batch without question, or with neither or both of answer and target.
    """

    def __init__(
        self, to_segments: Callable[..., list[Segment]] | None = None, *, image: str = "image",
        question: str = "question", answer: str = "answer", target: str = "target",
    ) -> None:  # fmt: skip
        self.to_segments = to_segments
        self.image, self.question, self.answer, self.target = image, question, answer, target

    def __call__(  # type: ignore[override]
        self, batchdata: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Pack, None]:
        """A pack, and no label: the labels are in it. It stays on the CPU; the network moves its tokens."""
        if isinstance(batchdata, Pack):
            return batchdata, None
        if self.to_segments is None or not isinstance(batchdata, Mapping):
            raise ValueError(
                f"PreparePacks got {type(batchdata).__name__}, expected a Pack, or with to_segments a "
                f"mapping of {self.image}, {self.question} and {self.answer} or {self.target}: pass it."
            )
        told = [key for key in (self.answer, self.target) if key in batchdata]
        if self.question not in batchdata or len(told) != 1:
            raise ValueError(
                f"PreparePacks got a batch of {', '.join(map(str, batchdata))}, expected {self.question} and "
                f"one of {self.answer} and {self.target}: add what is missing."
            )
        questions, told_values = batchdata[self.question], batchdata[told[0]]
        pictures = batchdata.get(self.image, [None] * len(questions))
        draw, samples = told[0] == self.target, []
        for picture, question, value in zip(pictures, questions, told_values, strict=True):
            asked = [question] if picture is None else [torch.as_tensor(picture), question]
            turns = [Turn("user", asked), Turn("assistant", [torch.as_tensor(value) if draw else str(value)])]
            samples.append(self.to_segments(turns, draw=draw))
        origins = [f"batch/{n}/0" for n in range(len(samples))]
        return Pack(samples, origins, sum(map(count_tokens, samples)), {}), None


class IterationUpdate:
    """One step of `SupervisedTrainer(iteration_update=...)` on a pack: the objective, and nothing else.

    It heeds the trainer's `amp`, `accumulation_steps` and `optim_set_to_none` and fires its events.

    Args:
        marks: control tokens of the tokenizer that made the packs.
        seed: of times and noise; each pack has a generator of its own, the same as in `UniMedVLModule`.
        clip: norm of all gradients; 0 does not clip, and below 0 is refused: it would turn them round.
        guard: what happens when a loss or a gradient is no number.
    """

    def __init__(
        self, marks: Marks, objective: Objective | None = None, *, seed: int = 0, clip: float = 0.0,
        guard: Guard | None = None,
    ) -> None:  # fmt: skip
        if not clip >= 0:
            raise ValueError(f"IterationUpdate got clip={clip}, expected a norm, or 0 for none: raise it.")
        self.marks, self.objective, self.seed = marks, objective or Objective(), seed
        self.clip, self.guard = clip, guard or Guard()

    def __call__(self, engine: Any, batch: Any) -> dict[str, Any]:
        """The losses of the pack, after the update."""
        pack, steps, within = _pack_of(engine, batch), engine.accumulation_steps, engine.state.iteration - 1
        number = pack.number if pack.number >= 0 else within
        if engine.state.epoch_length is not None:
            within %= engine.state.epoch_length
        ends = (within + 1) % steps == 0 or within + 1 == engine.state.epoch_length
        network = engine.network.train()
        if within % steps == 0:
            engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        with _autocast(engine):
            losses = self.objective(network, pack.samples, self.marks, pack_generator(self.seed, number))
        told = {"marks": self.marks, "objective": self.objective, "seed": self.seed, "number": number}
        self.guard.check(losses.loss, network, pack, **told)  # type: ignore[arg-type]
        engine.state.output = _output(losses, pack)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        loss, scaler = losses.loss / steps, engine.scaler if engine.amp else None
        (loss if scaler is None else scaler.scale(loss)).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if ends:
            if scaler is not None:
                scaler.unscale_(engine.optimizer)
            if self.clip:
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip)
                if scaler is None:  # a scaler skips such a step
                    self.guard.check(norm, network, pack, what="norm of the gradient", **told)  # type: ignore
            if scaler is None:
                engine.optimizer.step()
            else:
                scaler.step(engine.optimizer)
                scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


class ValidationUpdate:
    """`SupervisedEvaluator(iteration_update=...)`: the losses of a pack in eval mode, always the same chance.

    A metric of it: `ignite.metrics.Average(output_transform=lambda output: output["loss"])`.

    Args:
        marks: control tokens of the tokenizer that made the packs.
        seed: as in `UniMedVLModule`.
    """

    def __init__(self, marks: Marks, objective: Objective | None = None, *, seed: int = 0) -> None:
        self.marks, self.objective, self.seed = marks, objective or Objective(), seed

    @torch.no_grad()
    def __call__(self, engine: Any, batch: Any) -> dict[str, Any]:
        """The losses of the pack."""
        pack = _pack_of(engine, batch)
        number = pack.number if pack.number >= 0 else engine.state.iteration - 1
        chance = pack_generator(self.seed, VALIDATION + number)
        with _autocast(engine):
            losses = self.objective(engine.network.eval(), pack.samples, self.marks, chance)
        engine.state.output = _output(losses, pack)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def _pack_of(engine: Any, batch: Any) -> Pack:
    """The batch as the engine's `prepare_batch` has it; MONAI's default knows no packs."""
    if isinstance(batch, Pack) and not isinstance(engine.prepare_batch, PreparePacks):
        return batch
    return engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)[0]


def _autocast(engine: Any) -> torch.autocast:
    kind = torch.device(engine.state.device).type
    options = {"dtype": torch.bfloat16} if kind == "cpu" else {}
    return torch.autocast(kind, enabled=bool(engine.amp), **{**options, **engine.amp_kwargs})


def _output(losses: Losses, pack: Pack) -> dict[str, Any]:
    """What handlers find in `engine.state.output`."""
    return {
        CommonKeys.LOSS: losses.loss.item(), "text": losses.text.item(), "flow": losses.flow.item(),
        "origins": list(pack.origins), "tokens": pack.tokens,
    }  # fmt: skip


def list_images(folder: str | Path, volumes: bool = False) -> list[dict[str, str]]:
    """MONAI's data list of a folder: [{"image": path}, ...] in the order of names.

    What is left out is counted in the log, by ending; files whose names begin with a dot are not.

    Args:
        folder: holds images, by their ending or the first bytes of DICOM, and, as folders, DICOM series; or
            is one image.
        volumes: leave out pictures; DICOM files that lie in the folder itself are one volume, the folder.

    Raises:
        ValueError: no such folder, or no image in it; of volumes, several DICOM series in one folder.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"dataset_dir {folder} does not exist, expected a folder of images: check the path.")
    listed = [folder] if folder.is_file() else sorted(folder.iterdir())
    found = [path for path in listed if path == folder or not path.name.startswith(".")]
    known = (*(() if volumes else PICTURES), *NIFTI, *NRRD, *DICOM)
    kept = [path for path in found if _is_image(path, known)]
    if not kept:
        raise ValueError(
            f"dataset_dir {folder} holds no {'volume' if volumes else 'image'} ({len(found)} other entries), "
            f"expected {', '.join(known)} or folders of DICOM files: add some, or name another folder."
        )
    if left := sorted(set(found) - set(kept)):
        logger.warning("dataset_dir: %d of %d entries are left out: %s", len(left), len(found), _kinds(left))
    if volumes and folder.is_dir():
        kept = _as_volumes(folder, kept)
    return [{CommonKeys.IMAGE: str(path)} for path in kept]


def _is_image(path: Path, known: tuple[str, ...]) -> bool:
    """By its ending, or as DICOM; the directory file of a medium is none."""
    if path.is_dir() or not path.name.lower().endswith(known):
        return path.name.upper() != "DICOMDIR" and holds_dicom(path)
    return True


def _kinds(paths: Sequence[Path]) -> str:
    """How many of each ending, in words. Names may be those of patients, and so may what follows a dot."""
    known = {*PICTURES, *VIDEOS, *NIFTI, *NRRD, *DICOM, *mimetypes.MimeTypes().types_map[True], ".gz", ".npy"}
    files = [path for path in paths if not path.is_dir()]
    endings = [path.suffix.lower() for path in files]
    others = ("without ending", "of other endings")
    counts = Counter(one if one in known else others[bool(one)] for one in endings)
    told = [f"{count} {kind}" for kind, count in sorted(counts.items())]
    if folders := len(paths) - len(files):
        told.append(f"{folders} folders without DICOM files (name such a folder as dataset_dir to read it)")
    return ", ".join(told)


def _as_volumes(folder: Path, kept: list[Path]) -> list[Path]:
    """The slices of a series that lie in the folder itself become one item, the folder."""
    slices = {path for path in kept if path.is_file() and holds_dicom(path)}
    kept = [*([folder] if slices else []), *(path for path in kept if path not in slices)]
    for path in kept:
        if path.is_dir() and (count := len(series_uids(path))) > 1:
            raise ValueError(
                f"folder {path} holds {count} DICOM series, but one is expected: put each in its own folder."
            )
    return kept


def _put_back(made: Any, prompt: Prompt) -> Any:
    pictures = [part for part in prompt if isinstance(part, Tensor)]
    if isinstance(made, list | tuple):
        paired = len(pictures) == len(made) and all(isinstance(part, Tensor) for part in made)
        sources = [[picture] for picture in pictures] if paired else [prompt] * len(made)
        return [_put_back(part, source) for part, source in zip(made, sources, strict=True)]
    if not isinstance(made, Tensor) or not pictures:
        return made
    return put_back(made, pictures[-1], until="SquarePixels").as_subclass(Tensor)
