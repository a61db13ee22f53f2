"""A pair of fingerprints as the tests see it; what several tests need is made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pairing:
    """Two fingerprints (`fingerprint.record.Fingerprint`).

    stacks: which stacks count. common_blocks: digests of blocks that unrelated families share.
    """

    a: Any
    b: Any
    stacks: frozenset[str]
    common_blocks: frozenset[int] = frozenset()
    made: dict[str, Any] = field(default_factory=dict, compare=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made when it is first asked for by this name."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def namings(self) -> Mapping[str, tuple[Any, Any]]:
        """The branch sketches of A and of B under each naming of the anchors; None where a model has none."""
        return {
            "by_string": (self.a.sketches, self.b.sketches),
            "by_id": (self.a.sketches_by_id, self.b.sketches_by_id),
        }

    @property
    def same_content(self) -> bool:
        """Whether the canonical weights of both have one hash."""
        return self.a.content_sha256 is not None and self.a.content_sha256 == self.b.content_sha256
