"""Pickles as data: a small stack machine over their opcodes that imports nothing and calls nothing.

A pickle is a program whose GLOBAL names a callable and whose REDUCE calls it. Here a name becomes an inert `Name`, and
a call becomes a `Made` that records what would have been called with what; whatever the names are, os.system among
them, no code of this process or of the file runs on their account. The caller reads what it knows from the records.
Keys and members of sets are never hashed or compared, so that no file can choose collisions or recursion: what a pickle
would make a dict or a set of are lists here. Opcodes: https://docs.python.org/3/library/pickletools.html, those that
protocols 2 to 5 write; others are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

Value = Any  # None, bool, int, float, str, bytes, list, tuple, Name, Made or Persistent

MAX_PROGRAM = 64 << 20  # bytes; the largest public ones have a few MB
MAX_OPCODES = 1 << 22  # 100,000 tensors need about as many
MAX_OBJECTS = 1 << 20  # strings, containers, calls; also what is remembered
MAX_LINE = 512  # bytes of a module's or a function's name
MAX_INTEGER = 255  # bytes; those that torch writes have ten at most


class PickleError(ValueError):
    """What is wrong with a pickle, as a clause: "it ends too early"."""


class Name(NamedTuple):
    """A module's member that the pickle names. It was not imported."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Made:
    """A dict (what is None), or what a call would have returned, and what would have been done to it afterwards.

    what: what would have been called, args: with what. pairs: items that were set, as (key, value), in order. items:
    what was appended. state: what __setstate__ would have been given.
    """

    what: Value = None
    args: Value = ()
    pairs: Sequence[tuple[Value, Value]] = ()
    items: Sequence[Value] = ()
    state: Value = None


class Persistent(NamedTuple):
    """A reference to something outside of the pickle, torch's tensor storages for example."""

    reference: Value


@dataclass(frozen=True, slots=True)
class Ran:
    """What a pickle comes to. names: all that it names, in the order of their first mention."""

    value: Value
    names: tuple[Name, ...]


def run(file: BinaryIO, size: int) -> Ran:
    """Run the pickle at the file's position, which is then behind its end; at most `size` bytes of it are read.

    PickleError if it is malformed, or beyond one of the bounds above. The value may contain itself.
    """
    machine = _Machine(file, min(size, MAX_PROGRAM))
    machine.run()
    if len(machine.stack) != 1 or machine.marks:
        raise PickleError("it ends with a stack that holds more or less than its value")
    return Ran(machine.stack[0], tuple(machine.names))


class _Machine:
    """The state of one run: the stack, where its marks are, what is remembered, and what may still be used."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size
        self._room = MAX_OBJECTS
        self.stack: list[Value] = []
        self.marks: list[int] = []
        self.memo: dict[int, Value] = {}
        self.names: dict[Name, None] = {}

    def run(self) -> None:
        for _ in range(MAX_OPCODES):
            code = self.read(1)
            if code == b".":
                return
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"it has the opcode {code!r}, which checkpoints do not need")
            step(self)
        raise PickleError(f"it has more than {MAX_OPCODES:,} opcodes")

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise PickleError("it ends too early" if self._left < MAX_PROGRAM else "it is longer than any we know")
        data = self._file.read(count)
        if len(data) < count:
            raise PickleError("it ends too early")
        self._left -= count
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        data = self._file.readline(min(MAX_LINE, self._left))
        self._left -= len(data)
        if not data.endswith(b"\n"):
            raise PickleError("it names something that no Python module is called")
        return _text(data[:-1])

    def push(self, value: Value) -> None:
        """Push something that takes memory of its own."""
        self._room -= 1
        if self._room < 0:
            raise PickleError(f"it makes more than {MAX_OBJECTS:,} objects")
        self.stack.append(value)

    def pop(self) -> Value:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("it takes from an empty stack")
        return self.stack.pop()

    def top(self) -> Value:
        value = self.pop()
        self.stack.append(value)
        return value

    def since_mark(self) -> list[Value]:
        if not self.marks:
            raise PickleError("it lacks a mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def remember(self, place: int) -> None:
        if len(self.memo) >= MAX_OBJECTS:
            raise PickleError(f"it remembers more than {MAX_OBJECTS:,} objects")
        self.memo[place] = self.top()

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise PickleError("it recalls what it did not remember")
        self.stack.append(self.memo[place])

    def name(self, module: Value, name: Value) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and max(len(module), len(name)) <= MAX_LINE):
            raise PickleError("it names something that no Python module is called")
        self.names.setdefault(found := Name(module, name))
        self.push(found)

    def call(self, *, named: bool) -> None:
        """REDUCE, NEWOBJ and NEWOBJ_EX (named: with arguments by name, which are let go)."""
        if named:
            self.pop()
        args = self.pop()
        self.push(Made(self.pop(), args))

    def state(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Made):
            target.state = state

    def append(self, values: list[Value]) -> None:
        target = self.top()
        if isinstance(target, Made):
            target.items = items = target.items if isinstance(target.items, list) else []
            target = items
        if not isinstance(target, list):
            raise PickleError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: list[Value]) -> None:
        target = self.top()
        if not isinstance(target, Made) or len(values) % 2:
            raise PickleError("it sets items of what is no dict")
        target.pairs = pairs = target.pairs if isinstance(target.pairs, list) else []
        pairs.extend(zip(values[::2], values[1::2], strict=True))

    def integer(self, count: int) -> None:
        if not 0 <= count <= MAX_INTEGER:
            raise PickleError(f"it has an integer of {count} bytes")
        self.push(int.from_bytes(self.read(count), "little", signed=True))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PickleError("it has a string that is not UTF-8 text") from None


_Step = Callable[[_Machine], None]


def _constant(value: Value) -> _Step:
    return lambda m: m.stack.append(value)


def _new(make: Callable[[], Value]) -> _Step:
    return lambda m: m.push(make())


def _number(form: str) -> _Step:
    return lambda m: m.push(m.number(form))


def _string(form: str, convert: Callable[[bytes], Value]) -> _Step:
    return lambda m: m.push(convert(m.read(m.number(form))))


def _tuple(count: int) -> _Step:
    return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _check_protocol(number: int) -> None:
    if not 2 <= number <= 5:
        raise PickleError(f"it is of protocol {number}, which torch does not write")


def _stack_global(m: _Machine) -> None:
    name = m.pop()
    m.name(m.pop(), name)


def _pop(m: _Machine) -> None:
    """POP takes a mark where one is on top."""
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def _set_item(m: _Machine) -> None:
    value = m.pop()
    m.set_items([m.pop(), value])


_STEPS: Mapping[bytes, _Step] = {
    b"\x80": lambda m: _check_protocol(m.number("<B")),
    b"\x95": lambda m: m.number("<Q"),  # FRAME: how far to read ahead
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _pop,
    b"1": lambda m: m.since_mark().clear(),
    b"2": lambda m: m.stack.append(m.top()),
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False), b")": _constant(()),
    b"J": _number("<i"), b"K": _number("<B"), b"M": _number("<H"), b"G": _number(">d"),
    b"\x8a": lambda m: m.integer(m.number("<B")), b"\x8b": lambda m: m.integer(m.number("<i")),
    b"\x8c": _string("<B", _text), b"X": _string("<I", _text), b"\x8d": _string("<Q", _text),
    b"U": _string("<B", lambda data: data.decode("latin-1")), b"T": _string("<I", lambda data: data.decode("latin-1")),
    b"C": _string("<B", bytes), b"B": _string("<I", bytes), b"\x8e": _string("<Q", bytes),
    b"\x96": _string("<Q", bytes),
    b"]": _new(list), b"}": _new(Made), b"\x8f": _new(list),
    b"a": lambda m: m.append([m.pop()]), b"e": lambda m: m.append(m.since_mark()),
    b"\x90": lambda m: m.append(m.since_mark()),
    b"t": lambda m: m.push(tuple(m.since_mark())), b"\x91": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"s": _set_item, b"u": lambda m: m.set_items(m.since_mark()),
    b"q": lambda m: m.remember(m.number("<B")), b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")), b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()), b"\x93": _stack_global,
    b"R": lambda m: m.call(named=False), b"\x81": lambda m: m.call(named=False), b"\x92": lambda m: m.call(named=True),
    b"b": _Machine.state, b"Q": lambda m: m.push(Persistent(m.pop())),
}  # fmt: skip
