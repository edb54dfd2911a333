# SPDX-License-Identifier: Apache-2.0
"""Preprocessing of a modality as one callable: `recipe("ct")("scan/")` -> pictures (3, H, W) in [0, 1].

What each modality gets stands in one YAML of the top-level folder `transforms/`; how a step works, in this
room. A recipe file has `steps` (a chain of `_target_`s) and, beside it, the settings that may be given by
keyword. MONAI is imported where a recipe is made, so that headers and marks can be looked at without it.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_unimedvl.packages import MissingPackage

if TYPE_CHECKING:
    from monai.data import MetaTensor

_HERE = Path(__file__).resolve().parent
RECIPES = _HERE / "recipes" if (_HERE / "recipes").is_dir() else _HERE.parents[1] / "transforms"
_FIXED = ("steps", "modality", "about")


def modalities() -> list[str]:
    """Names that `recipe` knows."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


class Recipe:
    """A chain of steps from a path, folder or array to pictures; made by `recipe`.

    Args:
        name: what messages call it.
        settings: the values in force, by keyword.
        steps: callables; where one returns a list, the rest is applied to each item.
        about: what the modality is, in words.
    """

    def __init__(self, name: str, settings: dict[str, Any], steps: list[Any], about: str = "") -> None:
        self.name, self.settings, self.steps, self.about = name, settings, steps, about

    def __call__(self, source: Any) -> list[MetaTensor]:
        """path | series folder | array | tensor -> float32 pictures (3, H, W) in [0, 1], one a slice.

        Each has `.meta["source"]`: file, shape, plane, index, spacing and position in mm, affine
        (`volume.picture`); where MONAI is told not to track meta, pictures are plain tensors. A picture that
        a recipe made comes back unchanged.

        Raises:
            ValueError: one line with the file's name, what came, what was expected and what to do.
            MissingPackage: as it came, since no file is at fault.
        """
        from monai.data import get_track_meta

        from monai_unimedvl.transforms.image import check_picture, tracked

        name = Path(source).name if isinstance(source, str | os.PathLike) else ""
        items: list[Any] = [source]
        try:
            with tracked():
                for step in self.steps:
                    made = [step(item) for item in items]
                    items = [one for item in made for one in (item if isinstance(item, list) else [item])]
            for item in items:
                check_picture(item, name or "image", channels=(3,))
        except ValueError as error:
            if not name or name in str(error) or isinstance(error, MissingPackage):
                raise
            raise ValueError(f"{name}: {error}") from error
        for item in items:
            item.meta["recipe"] = self.name
        return items if get_track_meta() else [item.as_tensor() for item in items]

    def __repr__(self) -> str:
        settings = "".join(
            f", {key}={value!r}" for key, value in self.settings.items() if not isinstance(value, dict)
        )
        return f"recipe({self.name!r}{settings})"


def _unneeded(steps: list[Any]) -> list[str]:
    """What MONAI need not import to find the steps: all of it where each is named with its module."""
    named = all("." in str(step.get("_target_", "")) for step in steps if isinstance(step, dict))
    return ["monai"] if named else ["monai_unimedvl"]


def recipe(modality: str | os.PathLike[str], **overrides: Any) -> Recipe:
    """The preprocessing of a modality, or of a YAML file of your own, with settings changed by keyword.

    Args:
        modality: a name of `modalities()`, or the path of a YAML file.
        overrides: settings of that file, such as `window="lung"` (ct) or `count=16` (mri, ct).

    Raises:
        ValueError: unknown modality or setting; the message lists the known ones.
    """
    from monai.bundle import ConfigParser

    path = Path(modality)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        path = RECIPES / f"{modality}.yaml"
        if str(modality) not in modalities():
            near = difflib.get_close_matches(str(modality).lower(), modalities(), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"modality {modality!r} is not known{hint}: use one of {', '.join(modalities())}, "
                "or the path of a YAML file."
            )
    elif not path.is_file():
        raise ValueError(
            f"recipe file {path} does not exist, but a YAML file with `steps` is expected: check it."
        )
    config = ConfigParser.load_config_file(path)
    if not isinstance(config, dict) or not isinstance(config.get("steps"), list):
        raise ValueError(
            f"recipe file {path.name} has no list `steps`, expected a chain of `_target_`: add one."
        )
    settings = {key: value for key, value in config.items() if key not in _FIXED}
    for key in overrides:
        if key not in settings:
            raise ValueError(
                f"recipe {path.stem!r} has no setting {key!r}: use one of {', '.join(settings) or 'none'}."
            )
    settings.update(overrides)
    parser = ConfigParser({**config, **settings}, excludes=_unneeded(config["steps"]))
    try:
        steps = parser.get_parsed_content("steps")
    except (RuntimeError, ImportError) as error:  # MONAI wraps what the constructors of steps raise
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"recipe {path.stem!r} cannot be built ({reason}): check its steps.") from error
    return Recipe(path.stem, settings, steps, str(config.get("about", "")))
