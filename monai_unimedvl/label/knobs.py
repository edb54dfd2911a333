# SPDX-License-Identifier: Apache-2.0
"""What a request may set: shown in /info, filled in where it says nothing, refused where it does not fit.

Clients draw their panels from `config`: a list is a drop-down whose first item is the default, a truth value
is a box, a number or text a field.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What MONAI Label, its client and the viewers put into every request beside the settings of a task.
STOCK = frozenset(
    "model image images description device logging client_id label label_tag label_info labels save_label "
    "session session_id file timeout max_workers max_batch_size multi_gpu gpus user result_extension "
    "result_dtype result_compress result_write_to_file highlight foreground background roi points "
    "_id _image_id local_rank ngpus strategy method bundle_path enqueue y y_pred".split()
)


@dataclass(frozen=True)
class Knob:
    """One setting.

    Args:
        default: of that kind; a list or tuple holds all choices, the first is the default.
        least, most: of a number.
    """

    default: Any
    least: float | None = None
    most: float | None = None

    @property
    def usual(self) -> Any:
        """The value of a request that says nothing."""
        return self.default[0] if isinstance(self.default, list | tuple) else self.default

    def value(self, name: str, given: Any) -> Any:
        """What was given, as the kind that is expected.

        Raises:
            ValueError: it is none.
        """
        if isinstance(given, list | tuple):  # clients may send the whole drop-down back
            given = given[0] if len(given) else self.usual
        usual = self.usual
        if isinstance(self.default, list | tuple):
            found = next((one for one in self.default if str(one) == str(given)), None)
            if found is None:
                near = difflib.get_close_matches(str(given), list(map(str, self.default)), 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"{name} is {given!r}{hint}, expected one of {', '.join(map(str, self.default))}: choose "
                    "one."
                )
            return found
        if isinstance(usual, bool):
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            if str(given).lower() not in words:
                raise ValueError(f"{name} is {given!r}, expected true or false: correct it.")
            return words[str(given).lower()]
        if isinstance(usual, int | float):
            return self._number(name, given, whole=isinstance(usual, int))
        if given is None:
            return usual
        if not isinstance(given, str | int | float):
            raise ValueError(f"{name} is {given!r}, expected words: correct it.")
        return str(given)

    def _number(self, name: str, given: Any, whole: bool) -> Any:
        kind = "a whole number" if whole else "a number"
        limits = "" if self.least is None else f" from {self.least:g}"
        limits += "" if self.most is None else f" to {self.most:g}"
        try:
            number = float(given)
        except (TypeError, ValueError):
            number = math.nan
        low = -math.inf if self.least is None else self.least
        high = math.inf if self.most is None else self.most
        if not low <= number <= high or not math.isfinite(number) or (whole and number != int(number)):
            raise ValueError(f"{name} is {given!r}, expected {kind}{limits}: correct it.")
        return int(number) if whole else number


Knobs = Mapping[str, Knob]


def shown(knobs: Knobs) -> dict[str, Any]:
    """The settings as /info tells them."""
    return {name: list(k.default) if isinstance(k.default, tuple) else k.default for name, k in knobs.items()}


def settled(knobs: Knobs, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Every setting with its value in a request, and the names in it that mean nothing here.

    Raises:
        ValueError: a value that does not fit.
    """
    values = {
        name: knob.value(name, request[name]) if name in request else knob.usual
        for name, knob in knobs.items()
    }
    ignored = sorted(name for name in request if name not in knobs and name not in STOCK)
    return values, ignored
