"""Which published models do these weights descend from? Answered from the weights, offline, with its chance level.

    import provindex as pv

    index = pv.Index.load()
    result = index.query(pv.fingerprint("./support-7b"))
    pair = pv.compare("./support-7b", index["meta-llama/Llama-3.1-8B"])

Names are loaded on first use, so that `import provindex` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from provindex.common.version import __version__

if TYPE_CHECKING:
    from provindex.api import Fingerprint as Fingerprint
    from provindex.api import Index as Index
    from provindex.api import Pair as Pair
    from provindex.api import QueryResult as QueryResult
    from provindex.api import compare as compare
    from provindex.api import fingerprint as fingerprint
    from provindex.api import in_words as in_words
    from provindex.api import load_dataset as load_dataset
    from provindex.common.errors import ProvindexError as ProvindexError

_HOMES = {
    "Fingerprint": "api",
    "Index": "api",
    "Pair": "api",
    "ProvindexError": "common.errors",
    "QueryResult": "api",
    "compare": "api",
    "in_words": "api",
    "load_dataset": "api",
}
__all__ = [
    "Fingerprint",
    "Index",
    "Pair",
    "ProvindexError",
    "QueryResult",
    "__version__",
    "compare",
    "fingerprint",
    "in_words",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'provindex' has no attribute {name!r}")
    value = getattr(import_module(f"provindex.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Face(ModuleType):
    """This module. `provindex.fingerprint` is a function here, although a folder has the same name.

    The import system stores each submodule as an attribute of its package; for this one name it finds a property
    that keeps the function. `from provindex.fingerprint.record import ...` is not affected.
    """

    @property
    def fingerprint(self) -> Any:
        return import_module("provindex.api").fingerprint

    @fingerprint.setter
    def fingerprint(self, module: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Face
