"""Which models a model says that it was made of: claims of its card, adapter, config and GGUF metadata.

A claim costs nothing and may lie. It names what should be compared; it never counts as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provindex.common.hub_ids import id_of

Claims = Mapping[str, tuple[str, ...]]  # by the id of a claimed parent: who claims it
MOST = 16  # parents that are taken of each claimer; mergekit's cards name up to a dozen


def claims_of(
    own: str,
    card: Iterable[str],
    adapter: str = "",
    config: Mapping[str, Any] | None = None,
    metadata: Iterable[str] = (),
) -> Claims:
    """Claimed parents in the order of the claimers' weight, by their ids; what cannot be a Hub id is left out.

    own: the model's own id, which tools write into config.json as well. metadata: ids that a GGUF file names.
    """
    named = (config or {}).get("_name_or_path")
    said = (
        ("card", card),
        ("adapter", (adapter,)),
        ("gguf", metadata),
        ("config", (named,) if isinstance(named, str) else ()),
    )
    found: dict[str, tuple[str, ...]] = {}
    for who, ids in said:
        for model_id in dict.fromkeys(map(id_of, list(ids)[:MOST])):
            if model_id is not None and model_id.lower() != own.lower():
                same = next((known for known in found if known.lower() == model_id.lower()), model_id)
                found[same] = (*found.get(same, ()), who)
    return found
