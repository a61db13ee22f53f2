"""Errors that a person can act on: one sentence, and the next step."""

from __future__ import annotations

import os

from provindex.common.reasons import Reason

MAX_MESSAGE = 2000  # characters


def printable(text: str) -> str:
    """A text that may quote a file's names, for a terminal: what is no letter to it is escaped, what is too long cut.

    >>> printable("it names \x1b[2J")
    'it names \\x1b[2J'
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:MAX_MESSAGE])
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


class ProvindexError(Exception):
    """What is wrong, in one sentence; `next_step` says what to do about it. The command exits with status 2.

    reason: the same as data, where somebody goes on without what failed and keeps why.
    """

    def __init__(self, message: str, next_step: str | None = None, *, reason: Reason | None = None) -> None:
        self.message = printable(message)
        self.reason = reason
        self.next_step = printable(next_step) if next_step else next_step
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}" if self.next_step else self.message


class UsageError(ProvindexError):
    """The request itself makes no sense: contradictory options, a value out of range."""


class ModelError(ProvindexError):
    """A model that was found but cannot be read: truncated, hostile, or in a format we do not read."""


class UnreadFormatError(ModelError):
    """Weights in a format that is not read; `next_step` says how to get them in one that is, wherever the file is."""


class ModelNotFoundError(ProvindexError):
    """A reference that names no path, no indexed id, no cached model and no model on the Hub."""


class IndexFormatError(ProvindexError):
    """An index that is missing, of another version, or fails its digests."""


class BusyError(ProvindexError):
    """Another process holds what is needed, for longer than we wait."""


class StorageError(ProvindexError, OSError):
    """There is no space to write a file. An OSError too, so that what can do without the file goes on.

    error: what the system said; its text without a path is `strerror`.
    """

    def __init__(self, message: str, next_step: str, error: OSError) -> None:
        super().__init__(message, next_step)
        self.errno = error.errno
        self.strerror = os.strerror(error.errno or 0)


class DatasetNotFoundError(IndexFormatError):
    """A dataset that the Hub does not have, or does not show to this account."""


class NetworkError(ProvindexError):
    """The Hub could not be reached, refused, or was not allowed to be asked (offline)."""


class AccessError(NetworkError):
    """The Hub has what was asked for, and does not let this account read it."""


class BudgetError(ProvindexError):
    """More bytes would have to be fetched than the caller allowed; what came until then is kept."""


class UnansweredError(NetworkError):
    """The Hub failed, or the connection did: whether what was asked has been done is not known."""


class ConflictError(NetworkError):
    """Somebody else changed the dataset first; nothing was written."""


class ContributionError(ProvindexError):
    """A fingerprint that may not be contributed as it is: a duplicate, or terms that nobody acknowledged."""
