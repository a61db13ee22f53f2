"""Checks of features that strangers wrote: every field has the type that it must have.

`MfiFeatures.from_json` and `TfvFeatures.from_json` take fields as they are, and comparisons rely on their types; what
comes from a file goes through `checked` first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

MAX_LAYERS = 1 << 12
Check = Callable[[Any], bool]


def checked(found: Mapping[str, Any], table: Mapping[str, Check], what: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"its {what} is no object")
    for name, check in table.items():
        if name not in found or not check(found[name]):
            raise ValueError(f"its {what} has no {name} that can be used")
    return {name: found[name] for name in table}


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def is_depth(value: Any) -> bool:
    return is_count(value) and value <= MAX_LAYERS


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def list_of(check: Check, most: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def object_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and len(value) <= 64 and all(map(check, value.values()))


def is_scalar(value: Any) -> bool:
    return (
        value is None or isinstance(value, bool | float) or is_text(value) or (isinstance(value, int) and _fits(value))
    )


def _fits(value: int) -> bool:
    return abs(value) < 1 << 63


def either(*checks: Check) -> Check:
    return lambda value: any(check(value) for check in checks)


FACTORS = either(is_scalar, list_of(is_scalar, 1024))
