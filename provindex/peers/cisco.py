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
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from provindex.common.bounded_json import shown
from provindex.common.errors import IndexFormatError, UsageError
from provindex.common.files import FileFact
from provindex.common.reasons import Code, Reason
from provindex.evidence import vectors
from provindex.evidence.vectors import Vectors, of_norms
from provindex.fingerprint.record import FINGERPRINT_VERSION, IMPORTED, Facts, Fingerprint
from provindex.index import dataset
from provindex.index.collection import Index
from provindex.index.fill import Built
from provindex.peers import long_form
from provindex.peers.archive import opened
from provindex.peers.cisco_files import (
    BY_FAMILY,
    DeepFiles,
    Documents,
    Embedded,
    Folder,
    Unpacked,
    Zipped,
    deep_files,
    deep_folder,
)
from provindex.peers.cisco_signals import Taken, main_stack, take
from provindex.signals.mfi import MfiFeatures, mfi_of
from provindex.signals.nlf import NormTensors
from provindex.signals.tfv import tfv_of

PINNED = "b94040b668bea03e44b95a69c8554046d68fe0325b54ce64141bbf40765e48e9"  # sha256 of the published deep-signals.zip
ARCHIVE = "deep-signals.zip"
WHO = "cisco-mpk"  # in the names of shards
PEER = "Cisco model-provenance-kit"
LAYOUTS = ("", "database", "data/database", "provenancekit/data/database", "src/provenancekit/data/database")
MANIFEST = "catalog/manifest.json"
MAX_CATALOG, MAX_FEATURES = 4 << 20, 1 << 20  # bytes of a file
MAX_FAMILIES, MAX_ASSETS = 10_000, 100_000
SAVE_EVERY = 8  # rows a shard: with deep signals one takes some 10 MB of memory, and what was saved stays made
CATALOGUE = Path(__file__).parent / "cisco_catalogue.json"  # by `python -m build_index.peer_catalogue`
IMPORTER = 1  # raise it where rows change that are made of the same files: whoever has pulled them makes them again

PANELS = ("hidden", "residual", "residual_by_id", "branches", "neurons", "whole_layers", "token_rows", "blocks")
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


@dataclass(frozen=True, slots=True)
class Present:
    """An asset whose row is there, and was not made again."""

    model_id: str


Made = Fingerprint | Failed | Present


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
    database = database_in(root)
    with deep_files(database, deep, sha256) as signals:
        return _import(rows(Folder(database), signals, _name(root)), output, report)


def import_published(
    archive: Path,
    output: Path,
    *,
    sha256: str = PINNED,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> Built:
    """The same from the catalogue that comes with provindex and the published deep-signals.zip.

    Models that have a row in the index are not read again: after an interruption it goes on with the rest. progress:
    told how many models of how many are done.
    """
    made = {e.model_id for e in Index.load(output)} if (output / dataset.MANIFEST).exists() else ()
    models = len(brands())

    def told(found: Iterator[Made]) -> Iterator[Made]:
        for number, one in enumerate(found):
            progress(number, models)
            yield one

    with opened(archive, below=BY_FAMILY, sha256=sha256) as files:
        return _import(told(rows(embedded(), Zipped(files), PEER, made)), output, report)


def _import(found: Iterator[Made], output: Path, report: Callable[[str], None]) -> Built:
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


def _added(index: Index, one: Made) -> tuple[str, Any]:
    """What became of a row: ("added" or "present", its id), or ("failed", (source, reason))."""
    if isinstance(one, Failed):
        return "failed", (one.source, one.reason)
    if isinstance(one, Present):
        return "present", one.model_id
    alike = [e for e in index.find(one.model_id) if e.revision is None and not e.variant]
    if alike and index.own(one) is None:
        return "failed", (one.model_id, CLASH.format(name=one.model_id))
    return "added" if index.add(one) else "present", one.model_id


# --- what comes with provindex ---


@dataclass(frozen=True, slots=True)
class Brand:
    """The peer's family of a model: a brand and not a lineage. publisher: the peer's word for it."""

    id: str
    name: str
    publisher: str


def recipe() -> str:
    """What rows follow from besides the archive, as a sha256: if it is the same, so are they."""
    stated = f"{IMPORTER} {FINGERPRINT_VERSION} {hashlib.sha256(CATALOGUE.read_bytes()).hexdigest()}"
    return hashlib.sha256(stated.encode()).hexdigest()


@cache
def brands() -> Mapping[str, Brand]:
    """The family of each model of the embedded catalogue, by the id of its row."""
    found: dict[str, Brand] = {}
    documents = embedded()
    for shard in _shards(documents):
        catalog, _ = documents.document(shard["shard_path"], MAX_CATALOG)
        family = _object(catalog, "family")
        brand = Brand(*(_text(family, name) for name in ("family_id", "display_name", "publisher")))
        for entry in _list(catalog, "assets", MAX_ASSETS):
            found[_asset(entry, brand.id).model_id] = brand
    return found


@cache
def embedded() -> Embedded:
    """The peer's catalogue and base features, as far as they are read."""
    return Embedded(json.loads(CATALOGUE.read_text(encoding="utf-8"))["files"])


# --- the database ---


def read_database(root: Path, *, deep: Path | None = None) -> Iterator[Fingerprint | Failed]:
    """The fingerprint of every asset of the peer's database, or why there is none, in the order of its catalogue.

    root: the database, or a folder of the package that holds it. deep: a folder with the unpacked deep signals; those
    that lie in the database itself if None. Raises IndexFormatError at once if there is no catalogue that can be read,
    UsageError if `deep` holds none.
    """
    database = database_in(root)
    folder = deep_folder(database, deep)
    found = rows(Folder(database), None if folder is None else Unpacked(folder), _name(root))
    return (one for one in found if not isinstance(one, Present))


def rows(documents: Documents, signals: DeepFiles | None, name: str, made: Collection[str] = ()) -> Iterator[Made]:
    """`read_database` wherever it lies. name: what messages call it. made: ids of rows that need not be made."""
    try:
        shards = _shards(documents)
    except (ValueError, OSError) as error:
        what = f"The catalogue of {name} cannot be used: {_said(error)}."
        raise IndexFormatError(what, "Get the database again.") from error
    return _all(documents, signals, shards, made)


def _shards(documents: Documents) -> list[Mapping[str, Any]]:
    return _list(documents.document(MANIFEST, MAX_CATALOG)[0], "shards", MAX_FAMILIES)


def database_in(root: Path) -> Path:
    for layout in LAYOUTS:
        if (root / layout / MANIFEST).is_file():
            return root / layout
    raise IndexFormatError(
        f"{_name(root)} is no database of {PEER}: it has no {MANIFEST}.",
        "Name the folder provenancekit/data/database of that package, or of its source.",
    )


def _all(
    documents: Documents, signals: DeepFiles | None, shards: list[Mapping[str, Any]], made: Collection[str]
) -> Iterator[Made]:
    left = MAX_ASSETS
    for shard in shards:
        try:
            catalog, _ = documents.document(shard.get("shard_path"), MAX_CATALOG)
            family, entries = _text(_object(catalog, "family"), "family_id"), _list(catalog, "assets", left)
        except (ValueError, OSError) as error:
            yield Failed(_shown(shard.get("shard_path")), f"{_said(error)}.")
            continue
        left -= len(entries)
        for entry in entries:
            try:
                asset = _asset(entry, family)
                row = Present(asset.model_id) if asset.model_id in made else _fingerprint(documents, signals, asset)
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


# --- fields ---


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


def _fingerprint(documents: Documents, signals: DeepFiles | None, asset: _Asset) -> Fingerprint:
    """The row of an asset. ValueError or OSError if its files cannot be used."""
    bundle, file = documents.document(asset.features, MAX_FEATURES)
    if (bundle.get("asset_id"), bundle.get("family_id")) != (asset.asset_id, asset.family):
        raise ValueError(f"{shown(asset.features)} is of another asset")
    mfi, tfv = mfi_of(_object(bundle, "mfi")), tfv_of(_object(bundle, "tfv"))
    deep = None if signals is None else _deep(signals, bundle)
    taken = Taken() if deep is None else take(mfi, deep[0], _object(bundle, "signals"))
    updated = _text(bundle, "updated_at", default="")
    return Fingerprint(
        model_id=asset.model_id,
        facts=_facts(mfi, taken),
        mode=IMPORTED,
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
        more=_vectors(taken.nlf),
        absences=_absences(None if deep is None else taken),
        warnings=(Reason.of(Code.IMPORTED, size=asset.bucket or "?"),),
        files=(file, *((deep[1],) if deep else ())),
    )


def _vectors(norms: NormTensors | None) -> dict[str, Vectors]:
    """What E6 reads of the norm tensors: their values, where the database has more than statistics of them."""
    found = None if norms is None else of_norms(norms)
    return {} if found is None else {vectors.PANEL.name: found}


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


def _absences(taken: Taken | None) -> dict[str, Reason]:
    """Why signals and panels are missing. taken: None if there were no deep signals."""
    said = dict.fromkeys(PANELS, Reason.of(Code.PEER_NO_PANELS))
    said["VOA"] = Reason.of(Code.PEER_NO_VOCABULARY)
    said["eas_by_id"] = Reason.of(Code.PEER_NO_ROWS_BY_ID)
    if taken is None:
        return said | dict.fromkeys((*SIGNALS, vectors.PANEL.name), Reason.of(Code.PEER_NO_DEEP_SIGNALS))
    if not _vectors(taken.nlf):
        said[vectors.PANEL.name] = taken.absences.get("NLF", Reason.of(Code.PEER_NORM_STATISTICS))
    return said | dict(taken.absences)


def _deep(signals: DeepFiles, bundle: Mapping[str, Any]) -> tuple[long_form.DeepSignals, FileFact] | None:
    """The deep signals of an asset; None if it has none here. ValueError if they are not what its features say."""
    refs = [r for r in _list(bundle, "artifact_refs", 64) if r.get("type") == "deep_signals"]
    if not refs:
        return None
    path = _text(refs[0], "path")
    raw = signals.read(path)
    if raw is None:
        return None
    name, digest = path.rpartition("/")[2], hashlib.sha256(raw).hexdigest()
    stated = _CHECKSUM.fullmatch(_text(refs[0], "checksum", default=""))
    if stated is None and not signals.vouched:
        raise ValueError("its features state no sha256 of its deep signals")
    if stated is not None and digest != stated["hex"]:
        raise ValueError(f"the sha256 of {name} is not the one that its features state")
    try:
        return long_form.read(raw), FileFact(name, len(raw), digest)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}") from error
