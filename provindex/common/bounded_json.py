"""JSON of untrusted size and shape: what is read is bounded, and memory stays in proportion to what is kept.

`json.loads` turns a hostile 100 MB header into several GB of empty lists. Here an object is read member by
member, and the caller's reader decides what a value may be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_SPACE = re.compile(r"[ \t\n\r]*")
_WINDOW = 4096  # characters that one small value may take


class JsonError(ValueError):
    """What is wrong with a text, as a clause: "it names 'x' twice"."""


def read_object(
    text: str, start: int, read_value: Callable[[str, str, int], tuple[T, int]]
) -> tuple[dict[str, T], int]:
    """The object at `start` and the position after it.

    read_value(name, text, position) -> (value, position after it) is called for each member. Names must be
    unique.
    """
    found: dict[str, T] = {}
    position = _expect(text, skip_space(text, start), "{")
    position = skip_space(text, position)
    if text.startswith("}", position):
        return found, position + 1
    while True:
        name, position = read_string(text, position)
        if name in found:
            raise JsonError(f"it names {shown(name)} twice")
        position = _expect(text, skip_space(text, position), ":")
        found[name], position = read_value(name, text, skip_space(text, position))
        position = skip_space(text, position)
        if text.startswith("}", position):
            return found, position + 1
        position = skip_space(text, _expect(text, position, ","))


def read_string(text: str, start: int) -> tuple[str, int]:
    """The string at `start` and the position after it."""
    _expect(text, start, '"')
    try:
        value, position = _STRICT.raw_decode(text, start)
        value.encode("utf-8")  # a lone surrogate is legal to Python's reader and to nobody else
    except (json.JSONDecodeError, UnicodeEncodeError):
        raise JsonError(f"it has a malformed string at character {start}") from None
    return value, position


def read_small(text: str, start: int) -> tuple[Any, int]:
    """Any value of at most a few thousand characters at `start`, and the position after it.

    Stricter than Python's reader, like the reference: no NaN, no duplicate names, and minus zero is no
    integer.
    """
    try:
        value, length = _STRICT.raw_decode(text[start : start + _WINDOW])
    except (json.JSONDecodeError, RecursionError):
        raise JsonError(f"it is malformed, or a value is too long, at character {start}") from None
    return value, start + length


def skip_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def shown(name: str) -> str:
    """A name from a file, quoted, with control characters escaped and cut to a readable length."""
    return repr(name if len(name) <= 120 else name[:117] + "...")


def load_object(raw: bytes) -> Mapping[str, Any]:
    """A whole JSON object, of a size that the caller has bounded. Duplicate names: the last wins, as everywhere."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("it has values that JSON cannot hold (half a character)") from None
    except UnicodeDecodeError:
        raise JsonError("it is not UTF-8 text") from None
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except ValueError:  # malformed, or an integer of thousands of digits
        raise JsonError("it is not JSON") from None
    if not isinstance(value, dict):
        raise JsonError("it is not a JSON object")
    return value


def _expect(text: str, position: int, character: str) -> int:
    if not text.startswith(character, position):
        raise JsonError(f"it is not valid JSON at character {position} ({character!r} expected)")
    return position + 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise JsonError("it has an entry with a name given twice")
    return found


def _integer(digits: str) -> int:
    if digits == "-0" or len(digits) > 40:
        raise JsonError(f"it has an absurd number ({digits[:20]})")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"it has the constant {name}, which is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_constant=_no_constant)


def visible(text: str) -> str:
    """JSON text with escapes in place of characters that a terminal does not show as they are: controls, marks that
    turn the direction of writing, half characters. It says the same.

    >>> visible('{"a": "\\u202egnp.exe"}')
    '{"a": "\\\\u202egnp.exe"}'
    """
    return _FOREIGN.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


_FOREIGN = re.compile(r"[^\x20-\x7e\n]")


def compact(value: Any) -> str:
    """JSON as it is hashed: keys in order, no spaces, non-ASCII kept."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
