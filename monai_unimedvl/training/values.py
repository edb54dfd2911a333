# SPDX-License-Identifier: Apache-2.0
"""Values of a config file as the kinds that their fields have.

YAML reads `1e-4` as text, for want of a point, and whatever stands in quotes: it is taken as its number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isnan
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

WANTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def fit(value: Any, kind: Any, name: str) -> Any:
    """`value` as `kind`: int, float, str, bool, a mapping, list or tuple of these, or None where it may be.

    What is of none of these kinds is given back as it is.

    Args:
        name: of the value, for the error.

    Raises:
        ValueError: it is of another kind.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (each for each in inner if each is not NoneType)
        return fit(value, kind, name)
    if kind in (int, float):
        return _number(value, kind, name)
    if kind is bool:
        if not isinstance(value, bool):
            raise _wrong(name, value, WANTED[bool])
        return value
    if kind is str:
        if not isinstance(value, str | int | float | os.PathLike) or isinstance(value, bool):
            raise _wrong(name, value, WANTED[str])
        return str(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(name, value, "a mapping of names to values")
        return {str(key): fit(x, inner[1], f"{name}.{key}") for key, x in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        counted = origin is tuple and inner[-1] is not ...
        if isinstance(value, str) or not isinstance(value, Sequence) or counted and len(value) != len(inner):
            raise _wrong(name, value, f"a list of {len(inner)}" if counted else "a list")
        kinds = inner if counted else inner[:1] * len(value)
        return tuple(
            fit(x, each, f"{name}[{n}]") for n, (x, each) in enumerate(zip(value, kinds, strict=True))
        )
    return value


def fit_fields(values: Mapping[str, Any], cls: type[Any], where: str = "") -> dict[str, Any]:
    """Values by the names of a dataclass's fields, each as the kind that its field has.

    Args:
        where: what stands before a name in an error, such as "stages[0].".

    Raises:
        ValueError: a value of another kind than its field.
    """
    kinds = get_type_hints(cls)
    return {name: fit(value, kinds[name], f"{where}{name}") for name, value in values.items()}


def _number(value: Any, kind: type[int] | type[float], name: str) -> int | float:
    """A number, or text that is one; a whole one may be written 2.0 or 1e3."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _wrong(name, value, WANTED[kind])
    if kind is int and isinstance(value, int):
        return value  # large ones too, which a float would round
    try:
        number = float(value)
    except ValueError as error:
        raise _wrong(name, value, WANTED[kind]) from error
    if isnan(number) or (kind is int and not number.is_integer()):
        raise _wrong(name, value, WANTED[kind])
    return kind(number)


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{name} is {value!r}, expected {wanted}: write one.")
