"""Targets with bugs, so that the fuzzer itself is tested: each treats every input badly but its seed."""

from __future__ import annotations

import os
from collections.abc import Callable

from fuzz.guard import Target
from provindex.common.errors import ModelError


def _raise(data: bytes) -> None:
    raise KeyError("x") if b"seed" not in data else ModelError("It is no seed.")


def _loop(data: bytes) -> None:
    while b"seed" not in data:
        pass


def _allocate(data: bytes) -> None:
    if b"seed" not in data:
        bytearray(40 << 20)


def _allocate_all(data: bytes) -> None:
    if b"seed" not in data:
        bytearray(1 << 40)


def _die(data: bytes) -> None:
    if b"seed" not in data:
        os.abort()


def _say(data: bytes) -> None:
    raise ModelError(f"It is called {data.decode('latin-1')}.")


class ShownError(Exception):
    """A refusal that nobody made printable."""


def _show(data: bytes) -> None:
    raise ShownError(data.decode("latin-1"))


def _planted(name: str, run: Callable[[bytes], None], refusals: tuple[type[Exception], ...] = (ModelError,)) -> Target:
    return Target(name, lambda: [b"seed"], run, refusals, seconds=0.2)


PLANTED: dict[str, Target] = {
    target.name: target
    for target in (
        _planted("raise", _raise), _planted("loop", _loop), _planted("allocate", _allocate), _planted("die", _die),
        _planted("allocate all", _allocate_all), _planted("say", _say), _planted("show", _show, (ShownError,)),
    )
}  # fmt: skip
