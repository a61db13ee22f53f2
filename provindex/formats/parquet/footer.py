"""Where the columns of a Parquet file lie, from its footer, without pyarrow.

pyarrow ends the process when it is asked for a column of a row group whose size statistics contradict the schema (a C++
exception that nothing catches; seen in 26.0), so a footer that nobody vouches for is read here. It is a struct in
Thrift's compact protocol (parquet-format, `FileMetaData` in parquet.thrift), before its length and the four letters at
the end. What a reader could take in two ways is refused: a field that comes twice, lists in lists, unknown types.
"""

from __future__ import annotations

from dataclasses import dataclass

from provindex.common import varint

MAX_FOOTER = 4 << 20  # bytes; that of 256 fingerprints has 0.9 MB
MAGIC = b"PAR1"
_OPTIONAL, _REPEATED, _BYTE_ARRAY = 1, 2, 6  # as parquet.thrift counts them
_DEEPEST = 8  # the file, a row group, a column, what is known of it, its statistics

_Struct = dict[int, object]


class _Narrow(int):
    """A number of 32 bits: a reader passes over a field that has another width than parquet.thrift says."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group: its name (with dots for what is nested), its values by the footer, its first byte and
    the one after its last."""

    name: str
    values: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: how many rows, and its columns."""

    rows: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A column of the schema: its path, its type, and how many levels of definition and repetition its values have."""

    path: tuple[bytes, ...]
    kind: object
    definitions: int
    repetitions: int


def groups(data: memoryview) -> tuple[Group, ...]:
    """The row groups of a whole file; ValueError, in a clause, if its footer cannot be read or contradicts itself."""
    if len(data) < 12 or data[-4:] != MAGIC:
        raise ValueError("it is not a readable Parquet file: its last bytes are not those of one")
    length = int.from_bytes(data[-8:-4], "little")
    if length > min(MAX_FOOTER, len(data) - 12):
        raise ValueError(f"it is not a readable Parquet file: a footer of {length:,} bytes")
    reader = _Reader(data[len(data) - 8 - length : len(data) - 8])
    try:
        footer = reader.struct(0)
    except IndexError:
        raise ValueError("it is not a readable Parquet file: its footer does not end") from None
    leaves = _leaves([_known(element) for element in _list(footer, 2)])
    return tuple(_group(found, leaves) for found in _list(footer, 4))


def _leaves(elements: list[_Struct]) -> list[_Leaf]:
    """The columns of a schema, which is a tree written depth first, root first."""
    found: list[_Leaf] = []
    open_groups: list[tuple[int, tuple[bytes, ...], int, int]] = []  # children to come, path, levels
    for number, element in enumerate(elements):
        while open_groups and not open_groups[-1][0]:
            open_groups.pop()
        if bool(number) != bool(open_groups) or len(open_groups) > _DEEPEST:
            raise ValueError("it is not a readable Parquet file: its schema is no tree")
        left, path, definitions, repetitions = open_groups.pop() if open_groups else (0, (), 0, 0)
        if number:
            open_groups.append((left - 1, path, definitions, repetitions))
            name = element.get(4)
            path = (*path, name if isinstance(name, bytes) else b"")
            definitions += element.get(3) in (_OPTIONAL, _REPEATED)
            repetitions += element.get(3) == _REPEATED
        if not all(isinstance(element.get(field, _Narrow()), _Narrow) for field in (1, 3, 5)):
            raise ValueError("it is not a readable Parquet file: its schema has numbers of another width")
        children = element.get(5, 0)
        if isinstance(children, int) and children > 0:
            open_groups.append((children, path, definitions, repetitions))
        elif number:
            found.append(_Leaf(path, element.get(1), definitions, repetitions))
    if any(left for left, *_ in open_groups):
        raise ValueError("it is not a readable Parquet file: its schema does not end")
    return found


def _group(found: object, leaves: list[_Leaf]) -> Group:
    group = _known(found)
    chunks = _list(group, 1)
    if len(chunks) != len(leaves):
        raise ValueError("it is not a readable Parquet file: a row group has other columns than the schema")
    return Group(_number(group, 3), tuple(map(_chunk, chunks, leaves)))


def _chunk(found: object, leaf: _Leaf) -> Chunk:
    chunk = _known(found)
    if 1 in chunk:
        raise ValueError("it is not a readable Parquet file: a column lies in another file")
    facts = _known(chunk.get(3))
    path = [part for part in _list(facts, 3) if isinstance(part, bytes)]
    if tuple(path) != leaf.path or facts.get(1) != leaf.kind or any(field in chunk for field in (8, 9)):
        raise ValueError("it is not a readable Parquet file: a column is not that of the schema, or is encrypted")
    _check_sizes(facts.get(16), leaf)
    start, dictionary = _number(facts, 9), facts.get(11)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    name = b".".join(path).decode(errors="replace")
    return Chunk(name, _number(facts, 5), start, start + _number(facts, 7))


def _check_sizes(found: object, leaf: _Leaf) -> None:
    """Size statistics, where there are any, have one number for each level, and bytes of texts for texts only."""
    if found is None:
        return
    sizes = _known(found)
    counted = ((2, leaf.repetitions), (3, leaf.definitions))
    lengths = [(len(_list(sizes, field)) if field in sizes else 0, levels + 1) for field, levels in counted]
    if any(length not in (0, most) for length, most in lengths) or (1 in sizes and leaf.kind != _BYTE_ARRAY):
        raise ValueError("it is not a readable Parquet file: its size statistics are not those of its columns")


def _known(found: object) -> _Struct:
    if not isinstance(found, dict):
        raise ValueError("it is not a readable Parquet file: its footer lacks a part")
    return found


def _list(struct: _Struct, field: int) -> list[object]:
    found = struct.get(field)
    if not isinstance(found, list):
        raise ValueError("it is not a readable Parquet file: its footer lacks a list")
    return found


def _number(struct: _Struct, field: int) -> int:
    found = struct.get(field)
    if not isinstance(found, int) or found < 0:
        raise ValueError("it is not a readable Parquet file: its footer lacks a number")
    return found


class _Reader:
    """Thrift's compact protocol; IndexError where the data ends too early. A footer of 256 rows has 10^5 numbers of one
    byte, so these are read in place."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = bytes(data), 0

    def struct(self, depth: int) -> _Struct:
        """The fields of a struct by number; flags (true, false) have no bytes of their own."""
        if depth > _DEEPEST:
            raise ValueError("it is not a readable Parquet file: a footer nested too deeply")
        data, found, field = self.data, dict[int, object](), 0
        while head := data[self.at]:
            self.at += 1
            kind, step = head & 15, head >> 4
            field = field + step if step else self.signed()
            if field in found:
                raise ValueError("it is not a readable Parquet file: a field of its footer comes twice")
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
        self.at += 1
        return found

    def value(self, kind: int, depth: int) -> object:
        if 4 <= kind <= 6:  # numbers of 16, 32 and 64 bits
            byte = self.data[self.at]
            if byte < 0x80:
                self.at += 1
                number = (byte >> 1) ^ -(byte & 1)
            else:
                number = self.signed()
            return _Narrow(number) if kind == 5 else number
        if kind == 8:
            return self.piece(self.unsigned())
        if kind == 9:
            return self.list(depth + 1)
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (1, 2, 3):  # in a list flags have a byte, as a byte has
            self.at += 1
            return self.data[self.at - 1]
        if kind == 7:
            return self.piece(8)
        raise ValueError("it is not a readable Parquet file: its footer has a field that none has")

    def list(self, depth: int) -> list[object]:
        head = self.data[self.at]
        self.at += 1
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self.unsigned()
        if kind == 9 or count > len(self.data) - self.at:  # every element takes a byte at least
            raise ValueError("it is not a readable Parquet file: a list of its footer is too long")
        return [self.value(kind, depth) for _ in range(count)]

    def piece(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self.data):
            raise IndexError("the footer ends in a text")
        return self.data[self.at - length : self.at]

    def unsigned(self) -> int:
        byte = self.data[self.at]
        if byte < 0x80:
            self.at += 1
            return byte
        try:
            number, self.at = varint.read(self.data, self.at, len(self.data))
        except varint.CutShortError:
            raise IndexError("the footer ends in a number") from None
        except varint.TooLongError:
            raise ValueError("it is not a readable Parquet file: a number of its footer does not end") from None
        return number

    def signed(self) -> int:
        number = self.unsigned()
        return (number >> 1) ^ -(number & 1)
