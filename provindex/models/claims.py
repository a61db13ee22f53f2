"""What a model says of itself: claims of its card, adapter, config, GGUF metadata and merge recipe.

A claim costs nothing and may lie. It names what should be compared; it never counts as evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from provindex.common.claims import Claim, Kind, Stated
from provindex.common.hub_ids import MAX_ID, id_of
from provindex.models.card import Card

Claims = Mapping[str, tuple[str, ...]]  # by the id of a claimed parent: who claims it
MOST = 16  # parents that are taken of each claimer; mergekit's cards name up to a dozen


def claims_of(
    own: str,
    card: Iterable[str],
    adapter: str = "",
    config: Mapping[str, Any] | None = None,
    metadata: Iterable[str] = (),
    recipe: Iterable[str] = (),
) -> Claims:
    """Claimed parents in the order of the claimers' weight, by their ids; what cannot be a Hub id is left out.

    own: the model's own id, which tools write into config.json as well. metadata: ids that a GGUF file names. recipe:
    parents in a merge recipe of the card.
    """
    named = (config or {}).get("_name_or_path")
    said = (
        ("card", card),
        ("mergekit", recipe),
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


KINDS: Mapping[str, Kind] = {"adapter": "adapter_base", "mergekit": "merge_parent"}  # of the others: base_model


def stated_by(
    claims: Claims,
    card: Card,
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    license_files: tuple[str, ...] | None,
) -> Stated:
    """All that a model says of itself. claims: of parents, as `claims_of` finds them. metadata: texts of a GGUF file
    (license, license_name, license_link, name, quantized_by). license_files: see `Stated`.
    """
    said = [Claim(KINDS.get(who, "base_model"), model_id, who) for model_id, by in claims.items() for who in by]
    said += [Claim("base_model", name, "card") for name in card.base_models[:MOST] if id_of(name) is None]
    said += [Claim("merge_parent", name, "mergekit") for name in card.parents[:MOST] if id_of(name) is None]
    said += [Claim("license", name, "card") for name in card.licenses[:MOST]]
    said += [Claim("license", metadata["license"], "gguf")] if metadata.get("license") else []
    kind = config.get("model_type")
    said += [Claim("architecture", kind[:MAX_ID], "config")] if isinstance(kind, str) and kind else []
    return Stated(
        claims=tuple(dict.fromkeys(said)),
        license_name=card.license_name or metadata.get("license_name", ""),
        license_link=card.license_link or metadata.get("license_link", ""),
        relation=card.relation,
        datasets=card.datasets,
        names=tuple(filter(None, (card.name, metadata.get("name", "")))),
        quantized_by=metadata.get("quantized_by", ""),
        license_files=license_files,
    )
