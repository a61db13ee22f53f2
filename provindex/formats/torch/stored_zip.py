"""Zip archives whose entries are stored as they are, which torch.save writes: where each entry's bytes lie.

Only what torch writes is taken: no compression, no encryption, no comment, nothing behind the directory, one disk.
Directory and local headers must agree, and no two entries may share bytes, so that every reader of the archive sees the
same. https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from provindex.common.bounded_json import shown
from provindex.formats.tensors import Extent

MAX_ENTRIES = 200_000
MAX_DIRECTORY = 64 << 20  # bytes
MAX_NAME = 1024

_END = struct.Struct("<4s4H2IH")  # disk, directory's disk, entries here, entries, size, offset, comment's length
_END_64 = struct.Struct("<4sQ2H2I4Q")  # size of the rest, versions, disks, entries here, entries, size, offset
_LOCATOR = struct.Struct("<4sIQI")  # disk, offset of the record above, disks
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _SIZES_BEHIND = 1, 8  # flags
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_Found = tuple[int, int, str, int]  # offset of the local header, size, name, method


class ZipError(ValueError):
    """What is wrong with an archive, as a clause: "it is encrypted"."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory. start: of its local header. limit: where the next thing in the archive begins. method:
    how it is compressed, 0 if it is not."""

    name: str
    start: int
    size: int
    limit: int
    method: int


def read_directory(file: Extent) -> Mapping[str, Entry]:
    """The entries by name, in the order of their bytes. ZipError for anything that torch.save does not write."""
    count, size, start = _find_directory(file)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise ZipError(f"it lists {count:,} entries in {size:,} bytes, which is more than any we know")
    raw = file.now(start, start + size)
    found: list[_Found] = []
    at = 0
    for _ in range(count):
        at, entry = _entry(raw, at)
        found.append(entry)
    if at != size:
        raise ZipError("its directory has more bytes than entries")
    return _without_overlap(sorted(found), start)


def make_ready(file: Extent, entries: Iterable[Entry]) -> None:
    """Have the local headers of entries fetched together, before they are located one after another."""
    ends = ((e.start, e.start + _LOCAL.size + len(e.name.encode()), e.limit) for e in entries)
    file.ready([(start, min(stop, limit)) for start, stop, limit in ends])


def locate(file: Extent, entry: Entry) -> Extent:
    """The bytes of an entry, where its local header says the same as the directory does."""
    if entry.method:
        raise ZipError(f"its entry {shown(entry.name)} is compressed, which torch.save does not do")
    raw = file.now(entry.start, entry.start + _LOCAL.size + len(entry.name.encode()))
    mark, _, flags, method, _, _, _, packed, size, name_size, extra = _unpack(_LOCAL, raw, 0)
    if mark != b"PK\3\4" or raw[_LOCAL.size :][:name_size] != entry.name.encode() or flags & _ENCRYPTED or method:
        raise ZipError(f"the header of its entry {shown(entry.name)} is not what its directory says")
    told = (packed, size)
    unsaid = told == (0, 0) and flags & _SIZES_BEHIND
    if not unsaid and told not in ((entry.size, entry.size), (_FULL_32, _FULL_32)):
        raise ZipError(f"the header of its entry {shown(entry.name)} tells another size than its directory")
    begin = entry.start + _LOCAL.size + name_size + extra
    if begin + entry.size > entry.limit:
        raise ZipError(f"its entry {shown(entry.name)} reaches into what follows")
    return file.part(begin, begin + entry.size)


def _find_directory(file: Extent) -> tuple[int, int, int]:
    """Number of entries, size and start of the directory, which ends where the records that end the archive begin."""
    end = file.size - _END.size
    tail_at = max(0, end - _LOCATOR.size - _END_64.size)
    tail = file.now(tail_at, file.size)
    mark, disk, start_disk, here, count, size, start, comment = _unpack(_END, tail, end - tail_at)
    if mark != b"PK\5\6" or comment or disk or start_disk or here != count:
        raise ZipError("it does not end as torch.save ends it: it is cut short, or something was appended")
    at = end - _LOCATOR.size
    if at >= tail_at and tail[at - tail_at :].startswith(b"PK\6\7"):
        _, disk, record, _ = _unpack(_LOCATOR, tail, at - tail_at)
        end = at - _END_64.size
        if record != end or end < tail_at:
            raise ZipError("its zip64 record is not where it belongs")
        mark, rest, _, _, disk, start_disk, here, *wide = _unpack(_END_64, tail, end - tail_at)
        told = (min(wide[0], _FULL_16), min(wide[1], _FULL_32), min(wide[2], _FULL_32))
        if mark != b"PK\6\6" or rest != _END_64.size - 12 or disk or start_disk or here != wide[0]:
            raise ZipError("its zip64 record is malformed")
        if told != (count, size, start):
            raise ZipError("its zip64 record contradicts the record at its end")
        count, size, start = wide
    if start + size != end:
        raise ZipError("its directory does not lie at its end")
    return count, size, start


def _entry(raw: bytes, at: int) -> tuple[int, _Found]:
    """Where the next entry of the directory begins, and this one."""
    fields = _unpack(_ENTRY, raw, at)
    mark, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment, disk, _, _, offset = fields
    name_at = at + _ENTRY.size
    extra_at = name_at + name_size
    if mark != b"PK\1\2" or disk or name_size > MAX_NAME or extra_at + extra_size + comment > len(raw):
        raise ZipError("its directory is malformed")
    try:
        name = raw[name_at:extra_at].decode("utf-8")
    except UnicodeDecodeError:
        raise ZipError("its directory has a name that is not UTF-8 text") from None
    if flags & _ENCRYPTED:
        raise ZipError(f"its entry {shown(name)} is encrypted")
    size, packed, offset = _wide(raw[extra_at : extra_at + extra_size], size, packed, offset)
    if size != packed and not method:
        raise ZipError(f"its entry {shown(name)} has two sizes")
    return extra_at + extra_size + comment, (offset, packed, name, method)


def _wide(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """The three numbers, those that are full from the zip64 field, which holds just these, in this order."""
    lacking = sum(number == _FULL_32 for number in narrow)
    if not lacking:
        return narrow
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1 and at + 4 + size <= len(extra) and size >= 8 * lacking:
            numbers = iter(struct.unpack_from(f"<{lacking}Q", extra, at + 4))
            return tuple(next(numbers) if number == _FULL_32 else number for number in narrow)
        at += 4 + size
    raise ZipError("it lacks a zip64 field")


def _without_overlap(found: list[_Found], end: int) -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    for (offset, size, name, method), (limit, *_) in pairwise([*found, (end, 0, "", 0)]):
        if offset + _LOCAL.size + len(name.encode()) + size > limit:
            raise ZipError(f"its entry {shown(name)} overlaps what follows")
        if name in entries:
            raise ZipError(f"it has {shown(name)} twice")
        entries[name] = Entry(name, offset, size, limit, method)
    return entries


def _unpack(form: struct.Struct, raw: bytes, at: int) -> tuple[Any, ...]:
    if at < 0 or at + form.size > len(raw):
        raise ZipError("it is cut short")
    return form.unpack_from(raw, at)
