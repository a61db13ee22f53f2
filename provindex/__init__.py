"""Which published models do these weights descend from? Answered from the weights, offline, with its chance level.

    import provindex as pv

    index = pv.Index.load()
    result = index.query(pv.fingerprint("./support-7b"))
    pair = pv.compare("./support-7b", index["meta-llama/Llama-3.1-8B"])

Names are loaded on first use, so that `import provindex` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provindex.api import compare as compare
    from provindex.api import fingerprint as fingerprint
    from provindex.errors import ProvindexError as ProvindexError
    from provindex.fingerprint import Fingerprint as Fingerprint
    from provindex.index import Index as Index
    from provindex.index import QueryResult as QueryResult
    from provindex.verdict import Pair as Pair

__version__ = "0.1.0"

_HOMES = {
    "Fingerprint": "fingerprint",
    "Index": "index",
    "Pair": "verdict",
    "ProvindexError": "errors",
    "QueryResult": "index",
    "compare": "api",
    "fingerprint": "fingerprint",
}
__all__ = ["Fingerprint", "Index", "Pair", "ProvindexError", "QueryResult", "__version__", "compare", "fingerprint"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'provindex' has no attribute {name!r}")
    module = import_module(f"provindex.{_HOMES[name]}")
    if name == "fingerprint":  # a module that can be called: see its end
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value
