"""Kinds that do what must not be done, by which the runner is tested."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from hostile.kinds import Kind
from hostile.place import EXECUTED, SECRET, Place


def _plain(place: Place) -> None:
    place.model()


def _outside(place: Place) -> None:
    """A file outside that the user named himself may be read; here it counts as a fault."""
    place.model()
    place.asked = place.outside / "model.safetensors"


def _executed(place: Place) -> None:
    place.model()
    place.meanwhile = (place.outside / EXECUTED).touch


def _secret(place: Place) -> None:
    place.model(config={"model_type": SECRET})


def _dies(place: Place) -> None:
    place.model()

    def end() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGBUS)

    place.meanwhile = end


KINDS = (
    Kind("good", _plain),
    Kind("slow", _plain, seconds=0.0),
    Kind("large", _plain, megabytes=1.0),
    Kind("outside", _outside),
    Kind("executed", _executed),
    Kind("secret", _secret),
    Kind("dies", _dies),
)
