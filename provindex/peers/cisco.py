"""The published database of the peer (Cisco model-provenance-kit), as an ordinary index.

    catalog/manifest.json -> catalog/by-family/*.json                       which models there are
    features/base/by-family/<family>/<asset>_features.json                  MFI, TFV, the lengths of the signals
    features/deep-signals/by-family/<family>/<asset>_deep-signals.parquet   EAS, END, NLF, LEP, WVC; published apart

An imported row answers what it can, which are the signals. Of what a verdict rests on the peer keeps samples of weights
(`evidence/sampled.py`); without them a comparison is `inconclusive` and says why. Its families are brands, not
lineages: rows have no family.

Nothing in these files is trusted: paths stay inside, sizes are bounded, digests are checked, and an asset that cannot
be used is told with its reason while the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from provindex.common.bounded_json import load_object, shown
from provindex.common.errors import IndexFormatError, UsageError
from provindex.common.files import FileFact
from provindex.common.reasons import Code, Reason
from provindex.fingerprint.record import Facts, Fingerprint
from provindex.index import dataset
from provindex.index.collection import Index
from provindex.index.fill import Built
from provindex.peers import long_form
from provindex.peers.cisco_signals import Taken, main_stack, take
from provindex.peers.unpack import unpack
from provindex.signals.mfi import MfiFeatures, mfi_of
from provindex.signals.tfv import tfv_of

PINNED = "b94040b668bea03e44b95a69c8554046d68fe0325b54ce64141bbf40765e48e9"  # sha256 of the published deep-signals.zip
ARCHIVE = "deep-signals.zip"
MODE = "imported"
WHO = "cisco-mpk"  # in the names of shards
PEER = "Cisco model-provenance-kit"
LAYOUTS = ("", "database", "data/database", "provenancekit/data/database", "src/provenancekit/data/database")
BY_FAMILY = "by-family"
DEEP = f"features/deep-signals/{BY_FAMILY}"
MANIFEST = "catalog/manifest.json"
MAX_CATALOG, MAX_FEATURES = 4 << 20, 1 << 20  # bytes of a file
MAX_FAMILIES, MAX_ASSETS = 10_000, 100_000
SAVE_EVERY = 32  # rows a shard: with deep signals one takes some 10 MB of memory

PANELS = ("hidden", "residual", "residual_by_id", "branches", "neurons", "token_rows", "blocks")
SIGNALS = ("EAS", "END", "NLF", "LEP", "WVC")
CLASH = "Other features are in the index as {name}. Import into a new folder."

_REPOSITORY = re.compile(
    r"https?://huggingface\.co/(?P<id>(?!datasets/|spaces/)[\w-][\w.-]*(?:/[\w-][\w.-]*)?)/?", re.ASCII
)
_NAME = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)
_CHECKSUM = re.compile(r"sha256:(?P<hex>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Failed:
    """An asset, or a family's list of assets, that could not be read, and why."""

    source: str
    reason: str


# --- into an index ---


def import_database(
    root: Path,
    output: Path,
    *,
    deep: Path | None = None,
    sha256: str = PINNED,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add the peer's database to the index in a folder, which is made if there is none; one bad asset stops nothing.

    root: the database, or a folder of the package that holds it. deep: deep-signals.zip, or the folder that it was
    unpacked to; without it those that lie in the database, if any do. sha256: of the zip file. report: told each step.
    Rows that are there are not added again. Raises IndexFormatError or UsageError, before anything is written, if the
    catalogue or the zip file cannot be used.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; an index is a folder.")
    if deep is None or deep.is_dir():
        return _import(read_database(root, deep=deep), output, report)
    _database(root)  # complain before a long unpacking
    place = (
        output.parent if output.parent.is_dir() else None
    )  # gigabytes: rather there than where the system keeps bits
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{output.name}.") as folder:
        unpacked = Path(folder) / "deep-signals"
        report(f"unpacked {unpack_deep_signals(deep, unpacked, sha256=sha256)} files of deep signals")
        return _import(read_database(root, deep=unpacked), output, report)


def unpack_deep_signals(archive: Path, target: Path, *, sha256: str = PINNED) -> int:
    """Unpack the peer's deep-signals.zip: a folder `by-family` in a target that does not exist yet; how many files.

    The digest is checked first; `formats.unpack` says what else is. Raises IndexFormatError, UsageError if the target
    exists or the archive is no file; then nothing is left of what was written.
    """
    return unpack(archive, target, below=BY_FAMILY, sha256=sha256)


def _import(found: Iterator[Fingerprint | Failed], output: Path, report: Callable[[str], None]) -> Built:
    exists = (output / dataset.MANIFEST).exists()
    index = Index.load(output) if exists else Index.build((), name=output.resolve().name)
    said: dict[str, list[Any]] = {"added": [], "present": [], "failed": []}
    unsaved = 0
    try:
        for one in found:
            what, named = _added(index, one)
            said[what].append(named)
            report(f"{what:<8} {named}" if what != "failed" else f"failed   {named[0]}: {named[1]}")
            unsaved += what == "added"
            if unsaved >= SAVE_EVERY:
                index.save(output, who=WHO)
                index, unsaved = Index.load(output), 0
    finally:  # also when interrupted: what was done stays done
        if unsaved:
            index.save(output, who=WHO)
    saved = Index.load(output) if (output / dataset.MANIFEST).exists() else index
    return Built(saved, tuple(said["added"]), tuple(said["present"]), tuple(said["failed"]))


def _added(index: Index, one: Fingerprint | Failed) -> tuple[str, Any]:
    """What became of a row: ("added" or "present", its id), or ("failed", (source, reason))."""
    if isinstance(one, Failed):
        return "failed", (one.source, one.reason)
    alike = [e for e in index.find(one.model_id) if e.revision is None and not e.variant]
    if alike and index.own(one) is None:
        return "failed", (one.model_id, CLASH.format(name=one.model_id))
    return "added" if index.add(one) else "present", one.model_id


# --- the database ---


def read_database(root: Path, *, deep: Path | None = None) -> Iterator[Fingerprint | Failed]:
    """The fingerprint of every asset of the peer's database, or why there is none, in the order of its catalogue.

    root: the database, or a folder of the package that holds it. deep: a folder with the unpacked deep signals; those
    that lie in the database itself if None. Raises IndexFormatError at once if there is no catalogue that can be read,
    UsageError if `deep` holds none.
    """
    database = _database(root)
    signals = _deep_folder(database, deep)
    try:
        shards = _list(_document(database, MANIFEST, MAX_CATALOG)[0], "shards", MAX_FAMILIES)
    except (ValueError, OSError) as error:
        what = f"The catalogue of {_name(root)} cannot be used: {_said(error)}."
        raise IndexFormatError(what, "Get the database again.") from error
    return _all(database, signals, shards)


def _database(root: Path) -> Path:
    for layout in LAYOUTS:
        if (root / layout / MANIFEST).is_file():
            return root / layout
    raise IndexFormatError(
        f"{_name(root)} is no database of {PEER}: it has no {MANIFEST}.",
        "Name the folder provenancekit/data/database of that package, or of its source.",
    )


def _deep_folder(database: Path, deep: Path | None) -> Path | None:
    """The folder whose subfolders are families; None if no deep signals are there."""
    if deep is None:
        return database / DEEP if (database / DEEP).is_dir() else None
    places = [deep] if deep.name == BY_FAMILY else []
    places += [deep / below for below in (BY_FAMILY, f"deep-signals/{BY_FAMILY}", DEEP)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UsageError(
            f"{_name(deep)} has no folder {BY_FAMILY} with deep signals in it.",
            "Name deep-signals.zip, or the folder that it was unpacked to.",
        )
    return found


def _all(database: Path, signals: Path | None, shards: list[Mapping[str, Any]]) -> Iterator[Fingerprint | Failed]:
    left = MAX_ASSETS
    for shard in shards:
        try:
            catalog, _ = _document(database, shard.get("shard_path"), MAX_CATALOG)
            family, entries = _text(_object(catalog, "family"), "family_id"), _list(catalog, "assets", left)
        except (ValueError, OSError) as error:
            yield Failed(_shown(shard.get("shard_path")), f"{_said(error)}.")
            continue
        left -= len(entries)
        for entry in entries:
            try:
                row = _fingerprint(database, signals, _asset(entry, family))
            except (ValueError, OSError) as error:
                yield Failed(_shown(entry.get("asset_id")), f"{_said(error)}.")
            else:
                yield row


def _said(error: Exception) -> str:
    """What went wrong, without the full stop."""
    text = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
    return text.rstrip(".")


def _name(path: Path) -> str:
    return path.name or str(path)


def _shown(value: Any) -> str:
    usable = isinstance(value, str) and value.isprintable() and value.strip()
    return str(value)[:200] if usable else "an entry without a name"


# --- files and fields ---


def _inside(root: Path, name: Any) -> Path:
    """The place of a file that the database names. ValueError if it could be outside of the folder."""
    if not isinstance(name, str) or not name or len(name) > 512:
        raise ValueError("it names no path where a file belongs")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or any(c in '\\:*?"<>|' or ord(c) < 32 for c in name):
        raise ValueError(f"it names {shown(name)}, which is no file inside the database")
    path = root / name
    if path.exists() and not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{shown(name)} is a link to a place outside of the database")
    return path


def _bytes(path: Path, limit: int) -> bytes:
    """The whole file. ValueError if it is none, or larger than `limit`."""
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError(f"{shown(path.name)} is no regular file")
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"{shown(path.name)} is larger than {limit >> 20} MB, which no such file needs")
    return raw


def _document(root: Path, name: Any, limit: int) -> tuple[Mapping[str, Any], FileFact]:
    """A JSON object of the database. ValueError or OSError if it is none of bounded size."""
    path = _inside(root, name)
    if not path.exists():
        raise ValueError(f"{shown(name)} is missing")
    raw = _bytes(path, limit)
    try:
        found = load_object(raw)
    except ValueError as fault:
        raise ValueError(f"{shown(name)} cannot be used: {fault}") from None
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # half characters, NaN
    except (ValueError, RecursionError):
        raise ValueError(f"{shown(name)} has values that JSON cannot hold") from None
    return found, FileFact(path.name, len(raw), hashlib.sha256(raw).hexdigest())


def _list(found: Mapping[str, Any], name: str, most: int) -> list[Mapping[str, Any]]:
    listed = found.get(name)
    if not isinstance(listed, list) or len(listed) > most or not all(isinstance(item, dict) for item in listed):
        raise ValueError(f"its {name} are no list of at most {most:,} objects")
    return listed


def _object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is no object")
    return value


def _text(found: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = found.get(name, default)
    if not isinstance(value, str) or len(value) > 512:
        raise ValueError(f"its {name} is no text")
    return value


# --- one asset ---


@dataclass(frozen=True, slots=True)
class _Asset:
    """An entry of the catalogue. model_id: "org/name"; the bare name where `on_hub` is false. bucket: size class."""

    asset_id: str
    family: str
    model_id: str
    on_hub: bool
    bucket: str
    features: str


def _asset(entry: Mapping[str, Any], family: str) -> _Asset:
    found = _REPOSITORY.fullmatch(_text(entry, "source_uri", default=""))
    asset_id, bare = _text(entry, "asset_id"), _text(entry, "model_id")
    if not all(_NAME.fullmatch(name) for name in (asset_id, bare, family)):
        raise ValueError("its asset_id, model_id or family_id is no name")
    bucket = _text(entry, "param_bucket", default="")
    return _Asset(
        asset_id=asset_id,
        family=family,
        model_id=found["id"] if found else bare,
        on_hub=found is not None,
        bucket=bucket if bucket.isprintable() else "",
        features=_text(entry, "feature_path"),
    )


def _fingerprint(database: Path, signals: Path | None, asset: _Asset) -> Fingerprint:
    """The row of an asset. ValueError or OSError if its files cannot be used."""
    bundle, file = _document(database, asset.features, MAX_FEATURES)
    if (bundle.get("asset_id"), bundle.get("family_id")) != (asset.asset_id, asset.family):
        raise ValueError(f"{shown(asset.features)} is of another asset")
    mfi, tfv = mfi_of(_object(bundle, "mfi")), tfv_of(_object(bundle, "tfv"))
    deep = None if signals is None else _deep(signals, bundle)
    taken = Taken() if deep is None else take(mfi, deep[0], _object(bundle, "signals"))
    updated = _text(bundle, "updated_at", default="")
    return Fingerprint(
        model_id=asset.model_id,
        facts=_facts(mfi, taken),
        mode=MODE,
        content_sha256=None,
        mfi=mfi,
        tfv=tfv,
        vocabulary_size=tfv.vocab_size,
        source=f"{PEER}, {asset.asset_id} of its catalogue" + (f", updated {updated}" if updated.isprintable() else ""),
        id_certainty="certain" if asset.on_hub else "none",
        eas=taken.eas,
        end=taken.end,
        nlf=taken.nlf,
        lep=taken.lep,
        wvc=taken.wvc,
        absences=_absences(None if deep is None else taken.absences),
        warnings=(Reason.of(Code.IMPORTED, size=asset.bucket or "?"),),
        files=(file, *((deep[1],) if deep else ())),
    )


def _facts(mfi: MfiFeatures, taken: Taken) -> Facts:
    """What the peer knows of a model. It does not know how many parameters there are: 0."""
    return Facts(
        architecture=mfi.model_type,
        main=main_stack(mfi.model_type),
        parameters=0,
        hidden=mfi.hidden_size,
        layers=mfi.num_hidden_layers or taken.layers,
        vocabulary=mfi.vocab_size,
        precision="",
        nonfinite=0,
    )


def _absences(of_signals: Mapping[str, Reason] | None) -> dict[str, Reason]:
    """Why signals and panels are missing; of_signals: None if there were no deep signals."""
    said = dict.fromkeys(PANELS, Reason.of(Code.PEER_NO_PANELS))
    said["VOA"] = Reason.of(Code.PEER_NO_VOCABULARY)
    said["eas_by_id"] = Reason.of(Code.PEER_NO_ROWS_BY_ID)
    if of_signals is None:
        return said | dict.fromkeys(SIGNALS, Reason.of(Code.PEER_NO_DEEP_SIGNALS))
    return said | dict(of_signals)


def _deep(signals: Path, bundle: Mapping[str, Any]) -> tuple[long_form.DeepSignals, FileFact] | None:
    """The deep signals of an asset; None if it has none here. ValueError if they are not what its features say."""
    refs = [r for r in _list(bundle, "artifact_refs", 64) if r.get("type") == "deep_signals"]
    if not refs:
        return None
    path = _inside(signals, _text(refs[0], "path").removeprefix(f"{DEEP}/"))
    if not path.exists():
        return None
    stated = _CHECKSUM.fullmatch(_text(refs[0], "checksum", default=""))
    if stated is None:
        raise ValueError("its features state no sha256 of its deep signals")
    raw = _bytes(path, long_form.MAX_BYTES)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != stated["hex"]:
        raise ValueError(f"the sha256 of {path.name} is not the one that its features state")
    try:
        return long_form.read(raw), FileFact(path.name, len(raw), digest)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be used: {error}") from error
