"""sha256 of the weight files of a model, for statements about them: computed where the files are here."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from provindex.common.files import FileFact
from provindex.formats.ranged import Mapped
from provindex.models.source import Model

PIECE = 1 << 22  # bytes that are read at a time


def file_digests(model: Model) -> tuple[FileFact, ...]:
    """The files that were read, each with its digest: computed from its bytes if it is here, whatever its name says;
    else what the Hub says, None where nobody does.
    """
    return tuple(
        replace(fact, sha256=_sha256(reading)) if isinstance(reading, Mapped) else fact
        for fact, reading in zip(model.files, model.reads, strict=True)
    )


def _sha256(file: Mapped) -> str:
    extent, digest = file.extent, hashlib.sha256()
    for start in range(0, extent.size, PIECE):
        digest.update(extent.read(start, start + PIECE).data)
    file.check()
    return digest.hexdigest()
