"""References in, answers out: all that the command line and Python users call.

    models       resolve, fingerprint, weights_of, write_fingerprint     reference -> fingerprint
    answers      query, compare, compare_in_stages, compare_resolved
    gates        gate, expect, policy_for, check_rules, excluding
    audits       audit, audit_fetching
    fetching     query_fetching, compare_fetching, add_fetching, claimed_bases, outdated_fetched
    indexes      Index, fill_index, sync_index, remove_rows, export_index, import_database, fetch_deep_signals
    the Hub      pull, look, push

A reference is a folder, a weight file, `org/name[/file][@revision]`, a fingerprint file, or the id of an indexed model.
Every failure that a user can act on is a ProvindexError.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provindex.audit import findings
from provindex.audit import gate as gates
from provindex.audit.claims import claimed_rows
from provindex.audit.findings import Audit
from provindex.audit.gate import Gate, check_rules
from provindex.audit.policy import Policy
from provindex.audit.policy_file import policy_for
from provindex.catalogue.alike import Look, Neighbour, named
from provindex.catalogue.table import Shape
from provindex.catalogue.table import models as catalogue
from provindex.common import places
from provindex.common.claims import BASES, Claim, Stated
from provindex.common.errors import ModelError, ModelNotFoundError, NetworkError, ProvindexError, UsageError, printable
from provindex.common.files import FileFact, is_there, now
from provindex.common.hub_ids import is_address_of_dataset, is_hub_id, without_address
from provindex.common.reasons import BESIDE, Code, Reason
from provindex.common.suggest import alike, did_you_mean
from provindex.common.threads import one_blas_thread
from provindex.common.tokens import Tokenizer
from provindex.fingerprint import cache, parquet
from provindex.fingerprint.extract.deep import deep_agreement
from provindex.fingerprint.extract.model import fingerprint_model, with_every_layer, with_layers
from provindex.fingerprint.extract.parts import towers
from provindex.fingerprint.extract.slices import slices
from provindex.fingerprint.parquet import write_fingerprint
from provindex.fingerprint.record import IMPORTED, MODES, Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.formats import local_files
from provindex.formats.folder import left_out
from provindex.formats.ranged import settled
from provindex.hub import client as hub
from provindex.hub.client import Remote
from provindex.hub.fetch import LIMIT, Plan, Session, Spent, plan, run_stages, session
from provindex.hub.pull import Pulled, fetch_file, look, pull_made
from provindex.hub.pull import pull as pull_dataset
from provindex.hub.push import push
from provindex.index import answer, collection
from provindex.index import sync as keeping
from provindex.index.collection import READ_ON, calibration_of
from provindex.index.dataset import VECTOR, older_manifest, schema
from provindex.index.export import export
from provindex.index.fill import Built, fill
from provindex.index.links import update_families
from provindex.index.pulled import fetched_folder, is_reference, parse
from provindex.models import tree
from provindex.models.claims import claims_of
from provindex.models.copies import without_copies
from provindex.models.digests import file_digests
from provindex.models.listing import expand
from provindex.models.source import Model, on_the_hub, open_model
from provindex.peers.cisco_signals import SLICED, WHOLE
from provindex.report import document, notebook, words
from provindex.report.notebook import Record
from provindex.verdict.pair import Pair as Judged
from provindex.verdict.pair import beside_left_out
from provindex.verdict.pair import compare as compare_fingerprints

if TYPE_CHECKING:
    from datasets import Dataset

Progress = Callable[[int, int], None]
Reference = str | os.PathLike[str]

__all__ = [
    "Audit", "Built", "Comparison", "Fingerprint", "Gate", "Index", "Judged", "Pair", "Plan", "Policy", "QueryResult",
    "Resolved", "Spent", "add_fetching", "audit", "audit_fetching", "check_rules", "claimed_bases", "compare",
    "compare_fetching", "compare_in_stages", "compare_resolved", "excluding", "expect", "export_index",
    "fetch_deep_signals", "fill_index", "fingerprint", "gate", "import_database", "look", "outdated_fetched",
    "policy_for", "pull", "push", "query", "query_fetching", "remove_rows", "resolve", "sync_index", "weights_of",
    "write_fingerprint",
]  # fmt: skip


@dataclass(frozen=True, repr=False)
class QueryResult(answer.QueryResult):
    """The answer to a query, which can be written as a document."""

    def to_json(self) -> str:
        """The document of the JSON contract (provindex.query/1), as text."""
        return document.dumps(document.query_document(self))

    def records(self) -> list[Record]:
        """Matches and the other candidates as flat dicts, which `pandas.DataFrame` takes; `match` tells them apart."""
        return notebook.query_records(document.query_document(self, evidence=False))

    def _repr_html_(self) -> str:
        return notebook.html(document.query_document(self, evidence=False))


@dataclass(frozen=True, repr=False)
class Comparison(answer.Comparison):
    """The answer of `compare` with both sides, which can be written as a document."""

    def to_json(self) -> str:
        """The document of the JSON contract (provindex.compare/1), as text."""
        return document.dumps(document.compare_document(self))

    def records(self) -> list[Record]:
        """One flat dict: both sides, the verdict and the signals."""
        return notebook.compare_records(document.compare_document(self))

    def _repr_html_(self) -> str:
        return notebook.html(document.compare_document(self))


@dataclass(frozen=True, repr=False)
class Pair(Judged):
    """The verdict on two models, as `compare` returns it; A and B are how it calls them."""

    def records(self) -> list[Record]:
        """One flat dict: the verdict and the signals."""
        return notebook.compare_records(self._document())

    def _repr_html_(self) -> str:
        return notebook.html(self._document())

    def _document(self) -> document.Document:
        a, b = ({"model_id": side, "variant": ""} for side in "AB")
        return document.pair_document(a, b, self)


class Index(collection.Index):
    """Fingerprints that can be searched.

    `Index.load()` opens the default index; `index[model_id]` is a Fingerprint; `index.query(model)` finds the relatives
    of a fingerprint or of any model reference; `index.add(fingerprint)` and `index.save(folder)` keep a private one in
    the same format.
    """

    result_type = QueryResult

    def records(self) -> list[Record]:
        """The rows as flat dicts, which `pandas.DataFrame` takes: id, variant, family, license, date, ..."""
        return notebook.index_records(document.index_document(self))

    def query(
        self,
        fp: Fingerprint | Reference,
        top: int = 10,
        candidates: int = 50,
        *,
        also: Sequence[str] = (),
        claims: Mapping[str, Sequence[str]] | None = None,
        deeper: Callable[[], Fingerprint | None] = lambda: None,
        progress: Progress | None = None,
    ) -> QueryResult:
        """The likely relatives of a model, given as a fingerprint or as any model reference.

        top: how many matches to return. candidates: how many rows retrieval hands on to be compared in full. also: ids
        that are compared whatever retrieval says. claims: who claims which parent; None: what the model says. The
        query's own row is left out; another id with equal content is a match. deeper: makes the same model with every
        layer, None if it cannot; called where nothing links, or nothing that `also` names.
        """
        if not isinstance(fp, Fingerprint):
            asked = resolve(fp, index=self)
            fp, claims = asked.fingerprint, asked.claims if claims is None else claims
        found = super().query(fp, top, candidates, also=also, claims=claims, deeper=deeper, progress=progress)
        assert isinstance(found, QueryResult)
        return found

    def to_dataset(self, *, panels: bool = False) -> Dataset:
        """The rows as a `datasets.Dataset`, one a model, for tables, filters and notebooks.

        panels: with the arrays as well (up to a few MB a model); else the small columns only: who each model is, its
        facts, why something is missing, its retrieval vector. Columns: dataset_card/columns.md.
        """
        from datasets import Dataset
        from pyarrow import Table

        rows = [{**(to_row(entry.load()) if panels else entry.row), VECTOR: entry.vector} for entry in self]
        columns = schema("models") if not panels else parquet.schema("both").append(schema("models").field(VECTOR))
        return Dataset(Table.from_pylist(rows, schema=columns))


@dataclass(frozen=True)
class Resolved:
    """A reference, resolved: its fingerprint, how an answer calls it, and the open model if weights are at hand; else
    where they could be had, "" if nowhere."""

    fingerprint: Fingerprint
    label: str
    model: Model | None = None
    elsewhere: str = ""

    @property
    def claims(self) -> Mapping[str, Sequence[str]] | None:
        """Who claims which model as its parent; None if only the fingerprint is at hand."""
        return None if self.model is None else self.model.claims

    def vocabulary(self) -> Mapping[str, int] | None:
        """The token strings, for an exact VOA; None when only the fingerprint is at hand, or there is no tokenizer."""
        if self.model is None:
            return None
        tokenizer = self.model.tokenizer
        return tokenizer.vocab if isinstance(tokenizer, Tokenizer) else None

    def further(self, progress: Progress | None = None) -> Resolved | None:
        """The same with stage 2 of sampled reading, for when stage 1 finds no link; None if there is no more to read
        in this mode.
        """
        first = self.fingerprint
        if self.model is None or first.mode != "sampled" or not first.layers_unread:
            return None
        return replace(self, fingerprint=with_layers(self.model, first, progress))

    def deeper(self) -> Fingerprint | None:
        """The fingerprint with all neurons of every layer, for when two of them show no link; None if there is no more,
        or the weights are not at hand.
        """
        return None if self.model is None else with_every_layer(self.model, self.fingerprint)


def in_words(reason: Reason | Code) -> str:
    """A reason, or a code of `Pair.undone`, in plain English."""
    return words.text(reason if isinstance(reason, Reason) else Reason(reason))


def load_dataset(*references: Reference, panels: bool = False) -> Dataset:
    """The rows of indexes as a `datasets.Dataset`; references and default as for `Index.load`, panels as `to_dataset`.

    Reads what is on this machine: `provindex index pull org/name` fetches a dataset of the Hub.
    """
    return Index.load(*references).to_dataset(panels=panels)


def resolve(
    reference: str | os.PathLike[str],
    *,
    index: Index | None = None,
    mode: str | None = None,
    stage: int = 2,
    offline: bool = False,
    progress: Progress | None = None,
    local: bool = True,
    own_bytes: bool = False,
) -> Resolved:
    """The fingerprint that a reference names.

    In this order: an existing path (a folder, a weight file, a fingerprint file), an id that is in the index, the Hub
    cache, the Hub; last a row of the index that says less than weights do: one that was imported from another tool, or
    one of mode norms where a mode that reads more is asked for.

    mode: how weights are read if they are read; None: "sampled" for those of more than 1 GB that are on the Hub and not
    in its cache, else "exact". stage: of sampled reading; see `Resolved.further`. offline: never ask the Hub. local:
    whether the reference may be a path. A model on the Hub whose files have the digests of an indexed model's has that
    one's fingerprint. own_bytes: only the model's own weights count, no row and no fingerprint file, which state what
    somebody says of them: for gates.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"--mode is one of {', '.join(MODES)}, not {mode}.")
    text = os.fspath(reference)
    if is_address_of_dataset(text):
        raise UsageError(f"{text[:200]} is a dataset, and no model.", "An index of it: --index org/name.")
    text = without_address(text)
    path = Path(text)
    if own_bytes:
        return _from_own_bytes(text, path, mode, stage, offline, progress, local)
    if local and path.suffix == ".parquet" and path.is_file():
        kept = parquet.read_fingerprints(path)[0]
        return Resolved(kept, kept.model_id)
    found = index.find(text) if not (local and path.exists()) and index is not None else []
    for entry in found:
        if entry.row["mode"] != IMPORTED and not (entry.row["mode"] == "norms" and mode in ("exact", "sampled")):
            return Resolved(entry.load(), entry.label)
    if not found and not (local and path.exists()):
        _check_variant(text, index)
    try:
        return _from_weights(text, index, mode, stage, offline, progress, local)
    except ModelNotFoundError as error:
        if not found:
            raise _with_suggestions(error, text, index) from error
        return Resolved(found[0].load(), found[0].label)
    except NetworkError:
        if not found:
            raise
        return Resolved(found[0].load(), found[0].label)


def _check_variant(text: str, index: collection.Index | None) -> None:
    """ModelNotFoundError if an index has the id of `model_id[@revision]#variant`, and not that variant of it."""
    whole = text.removesuffix("]").replace(" [", "#", 1) if text.endswith("]") else text
    model_id, asked, variant = whole.partition("#")
    rows = index.find(model_id) if asked and index is not None else []
    if rows:
        names = sorted({row.variant for row in rows} - {""})
        has = f"It has {', '.join(f'{model_id}#{name}' for name in names)}." if names else f"It has {model_id} alone."
        raise ModelNotFoundError(f"The index has no variant {variant} of {model_id}.", has)


def _with_suggestions(error: ModelNotFoundError, text: str, index: collection.Index | None) -> ModelNotFoundError:
    """The same error; where a name without an organisation was given, with ids that end so."""
    if "/" in text or os.sep in text:
        return error
    ids = sorted({*(entry.model_id for entry in index or ()), *catalogue()})
    return ModelNotFoundError(error.message, did_you_mean(alike(text, ids)) or error.next_step)


def _from_own_bytes(
    text: str, path: Path, mode: str | None, stage: int, offline: bool, progress: Progress | None, local: bool
) -> Resolved:
    """`resolve` for a gate or an audit."""
    trust = "Name its folder, its weight file or org/name on the Hub; or add --trust-index."
    if local and path.suffix == ".parquet" and path.is_file():
        raise UsageError(f"Only a model's own weights count here, and {path.name} is a fingerprint.", trust)
    try:
        return _from_weights(text, None, mode, stage, offline, progress, local)
    except (ModelNotFoundError, NetworkError) as error:
        message = f"Only a model's own weights count here, and they cannot be had: {error.message}"
        raise type(error)(message, trust) from error


def _from_weights(
    text: str, index: Index | None, mode: str | None, stage: int, offline: bool, progress: Progress | None, local: bool
) -> Resolved:
    """`resolve` for weights on this machine or on the Hub."""
    found_there = on_the_hub(text, offline=offline, mode=mode, local=local)
    if found_there is not None and index is not None:
        known = _known_files(found_there, index)
        if known is not None:
            return Resolved(known, known.label, elsewhere=text)
    model = open_model(text, offline=offline, mode=mode, found=found_there, local=local)
    mode = mode or ("sampled" if model.ranged else "exact")
    here = local and Path(text).exists()
    model, made = _through_cache(model, mode, Path(text) if here else None, stage, progress)
    return Resolved(made, text if here else made.label, model)


def _through_cache(
    model: Model, mode: str, path: Path | None, stage: int = 2, progress: Progress | None = None
) -> tuple[Model, Fingerprint]:
    """The fingerprint of an open model, from the cache if it was made before. path: where the model is, if it is here:
    files in its folder that hold the same weights are then no longer named as left out.
    """
    digests: dict[str, str] = {}
    if mode == "exact" and path is not None and path.is_dir():
        model = without_copies(model, local_files.snapshot_in(path))
    make = partial(fingerprint_model, model, mode=mode, stage=stage, progress=progress, digests=digests)
    return model, cache.through(model, mode, make, digests)


def _known_files(there: Remote, index: Index) -> Fingerprint | None:
    """The fingerprint of a model on the Hub from an indexed one that was made from files with the same digests."""
    listed = there.files or {}
    weights = [listed[name] for name in hub.weights_at(there)]
    entry = index.of_files([file.sha256 for file in weights], there.repo)
    if entry is None:
        return None
    read = hub.weights_at(there)
    beside = () if there.file else left_out({name: file.size for name, file in listed.items()}, read)
    return replace(
        entry.load(),
        model_id=there.repo,
        revision=there.commit,
        variant=there.file,
        family=None,
        license=None,
        parents=(),
        source=None,
        warnings=(Reason.of(Code.SAME_FILES, model=entry.label), *beside),
        files=tuple(FileFact(file.path, file.size, file.sha256) for file in weights),
        bytes_read=0,
        bytes_total=sum(file.size for file in weights),
        indexed=False,
    )


def query(
    index: Index,
    asked: Resolved,
    top: int = 10,
    candidates: int = 50,
    *,
    also: Sequence[str] = (),
    beside: Sequence[str] = (),
    reading: Progress | None = None,
    progress: Progress | None = None,
) -> tuple[Resolved, QueryResult]:
    """The likely relatives of a resolved model. If stage 1 of sampled reading finds no link, stage 2 is read; so it is
    when rows are asked about by their ids (`also`), because a link to one of them may be seen there only. A model of
    which every byte was read is then compared by all of its layers with the first candidates, and with what is asked
    about: layers that were put between the others may hide the two that a row keeps.

    beside: ids of further rows that are compared whatever retrieval says. reading: told how far stage 2 is. progress:
    told how many candidates were compared. What was asked with comes back too.
    """
    if _samples_lacking(asked) and _has_imported(index, asked.fingerprint.facts.hidden):
        asked = with_slices(asked)

    def ask(asked: Resolved) -> QueryResult:
        return index.query(
            asked.fingerprint, top, candidates, also=(*also, *beside), claims=asked.claims, deeper=asked.deeper,
            progress=progress,
        )  # fmt: skip

    result = ask(asked)
    further = None if result.linked and not also else asked.further(reading)
    return (asked, result) if further is None else (further, ask(further))


def gate(
    result: QueryResult,
    policy: Policy | Sequence[str],
    index: Index,
    asked: Resolved | None = None,
    *,
    excluded: Sequence[Reason] = (),
    today: date | None = None,
) -> Gate:
    """What a query's answer says of a policy, or of rules that deny (ids, globs, `license:NAME` ...).

    The answer must have compared what is denied: `query(..., also=policy.asked_for(index))`. asked: what was asked
    with; of its weights the towers are compared too, and an answer without them says that a row stands for the model.
    excluded: what `excluding` took out. today: for exceptions that expire; None: the day in UTC, by the clock even
    where SOURCE_DATE_EPOCH is set.
    """
    rules = policy if isinstance(policy, Policy) else Policy().with_more(policy)
    kept = [] if asked is None or not rules.asks else _towers(asked, rules.exclude)
    day = datetime.now(UTC).date() if today is None else today
    own_bytes = asked is not None and asked.model is not None
    return gates.gate(result, rules, index, day, towers=kept, own_bytes=own_bytes, excluded=excluded)


def expect(
    pair: Judged, expected: str, a: Resolved, b: Fingerprint, *, index: Index | None = None, exclude: Sequence[str] = ()
) -> tuple[str, str, Reason]:
    """(status of the gate: "passed", "failed" or "inconclusive"; the state of the pair, and why).

    expected: "linked" or "unrelated". Models of which no transform short of retraining makes the other are unrelated.
    Towers of A are compared with B too, but for those that `exclude` names. index: as for `compare_resolved`.
    """
    levels = calibration_of() if index is None else index.calibration
    found = gates.state_of(pair, a.fingerprint)
    if expected == "unrelated":
        found = gates.with_towers(found, _towers(a, exclude), b, partial(compare_fingerprints, calibration=levels))
    states = {"linked": {"denied": "passed", "cleared": "failed", "not_comparable": "failed"},
              "unrelated": {"denied": "failed", "cleared": "passed", "not_comparable": "passed"}}  # fmt: skip
    return states[expected].get(found[0], "inconclusive"), *found


def audit(
    index: Index,
    asked: Resolved,
    top: int = 10,
    candidates: int = 50,
    *,
    reading: Progress | None = None,
    progress: Progress | None = None,
) -> tuple[Resolved, Audit]:
    """What a resolved model says of itself, held against its weights, and the licenses above it.

    asked: resolved with `own_bytes=True`; else a row stands for the model, and the audit says so. Claimed models that
    the index has are compared whatever the search says, and read further where they do not link. The rest is as for
    `query`.
    """
    stated = _stated(asked)
    claimed = claimed_rows(stated, index)
    more: dict[str, Any] = {"reading": reading, "progress": progress}
    read, result = query(index, asked, top, candidates, **more)
    linked = {entry.model_id for match in result.linked for entry in (match.entry, *match.copies)}
    if set(claimed) - linked:
        read, result = query(index, read, top, candidates, also=claimed, **more)
    return read, _audited(result, stated, index, read)


def audit_fetching(index: Index, asked: Resolved, count: int, **more: Any) -> tuple[Index, Resolved, Audit, Spent]:
    """`audit`, after reading parts of claimed models, and of those that look like ancestors, from the Hub.

    The rest is as for `query_fetching`.
    """
    stated = _stated(asked)
    wanted = [value for value in stated.values(*BASES) if is_hub_id(value)]
    extended, read, result, spent = query_fetching(index, asked, count, also=wanted, **more)
    return extended, read, _audited(result, stated, extended, read), spent


def _audited(result: QueryResult, stated: Stated, index: Index, read: Resolved) -> Audit:
    own_bytes = read.model is not None
    files = file_digests(read.model) if read.model is not None else read.fingerprint.files
    towers_kept = _towers(read, ())
    return findings.audit(result, stated, index, now().date(), towers=towers_kept, own_bytes=own_bytes, files=files)


def _stated(asked: Resolved) -> Stated:
    """What a model says of itself; of one of which only a row is at hand, what the row says."""
    if asked.model is not None:
        return asked.model.stated
    row = asked.fingerprint
    said = [Claim("base_model", parent, "row") for parent in row.parents]
    return Stated((*said, *([Claim("license", row.license, "row")] if row.license else [])))


def _towers(asked: Resolved, exclude: Sequence[str]) -> list[tuple[str, tuple[Fingerprint, ...]]]:
    """What is compared of a model besides its fingerprint, where its weights are at hand."""
    found = [] if asked.model is None else towers(asked.model, asked.fingerprint.mode)
    return [(name, readings) for name, readings in found if name not in exclude]


EXCLUDABLE = BESIDE | {Code.ENTRY_NOT_READ}  # what one name stands for


def excluding(asked: Resolved, globs: Sequence[str]) -> tuple[Resolved, tuple[Reason, ...]]:
    """The same model without what patterns of names let be left out (files, folders, entries), and what that is."""
    kept, out = [], []
    for reason in asked.fingerprint.warnings:
        names = (reason.subject, str(dict(reason.figures).get("entry", "")))
        glob = next((g for g in globs if any(name and fnmatchcase(name, g) for name in names)), None)
        if reason.code in EXCLUDABLE and glob is not None:
            out.append(Reason.of(Code.EXCLUDED, because=[reason], glob=glob))
        else:
            kept.append(reason)
    if not out:
        return asked, ()
    gone = {reason for one in out for reason in one.because}
    model = asked.model and replace(asked.model, warnings=tuple(r for r in asked.model.warnings if r not in gone))
    changed = replace(asked.fingerprint, warnings=tuple(kept))
    return replace(asked, fingerprint=changed, model=model), tuple(out)


def query_fetching(
    index: Index,
    asked: Resolved,
    count: int,
    *,
    also: Sequence[str] = (),
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    planned: Callable[[Plan], None] = lambda _: None,
    **more: Any,
) -> tuple[Index, Resolved, QueryResult, Spent]:
    """`query`, after reading from the Hub the `count` models of the catalogue that look most like ancestors.

    What the model claims as its parents comes first, and before it what is asked about (`also`) and has no row. Of each
    model norms and biases are read, then as much as the answer needs (hub/README.md); rows are kept in the index
    `fetched`. limit: bytes of all that is fetched. planned: told the plan before anything is asked. say: told each
    step. more: as for `query`. The index with the fetched rows comes back first. A model that cannot be had is noted
    in what comes back, and ends nothing. UsageError if the Hub may not be asked.
    """
    _may_fetch(count)
    look = Look.of(asked.fingerprint)
    extended, kept = _with_fetched(index), asked
    wanted = [name for name in also if is_hub_id(name) and (extended.depth(name) or 0) < READ_ON]
    first = {name.lower(): named(look, name) for name in wanted}
    alike = extended.neighbours(asked.fingerprint, asked.claims, shallow=True)
    found = [*first.values(), *(n for n in alike if n.model_id.lower() not in first)]
    found = [replace(n, model_id=rows[0].model_id) if (rows := extended.spelled(n.model_id)) else n for n in found]
    todo = plan(found, count, LIMIT if limit is None else limit, look.shape, extended.depth)
    planned(todo)

    def ask(rows: Sequence[str]) -> QueryResult:
        nonlocal extended, kept
        extended = _with_fetched(index)
        kept, answered = query(extended, kept, also=also, beside=rows, **more)
        return answered

    with session(todo, _stage_of, places.fetched_index(), say) as run:
        run.take_planned()
        result = ask(run.rows)
        for match in result.candidates:  # rows of other indexes that can be read on
            name, left = match.entry.model_id, count - len(run.got)
            if left > 0 and name not in run.got and is_hub_id(name) and match.pair.is_open:
                run.adopt(name, extended.depth(name))
        result = run_stages(run, ask, result, wanted)
    return extended, kept, result, run.spent


def compare_fetching(
    a: Resolved,
    bases: Mapping[str, Sequence[str]],
    count: int,
    *,
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    planned: Callable[[Plan], None] = lambda _: None,
    reading: Progress | None = None,
    index: Index | None = None,
) -> tuple[Resolved, Resolved, Judged, Spent]:
    """The verdict on a model and the first of the models that it claims as its base of which the weights can be had.

    bases: who claims each of them, by id. At most `count` are asked for. Of a base norms and biases are read, then as
    much as the verdict needs; its row is kept in the index `fetched`. The rest is as for `query_fetching`. Raises
    ModelNotFoundError, with what stood in the way, if none can be had.
    """
    _may_fetch(count)
    like = Look.of(a.fingerprint)
    found = [named(like, *base) for base in bases.items() if is_hub_id(base[0])]
    if not found:
        raise UsageError(f"--fetch reads a model of the Hub, and {next(iter(bases))} is no org/name.", "Leave it out.")
    todo = plan(found, count, LIMIT if limit is None else limit, like.shape)
    planned(todo)
    with session(todo, _stage_of, places.fetched_index(), say) as run:
        for one in todo.models:
            base = one.neighbour.model_id
            run.take(base, 0, one.neighbour.claims)
            if base in run.read_last:
                return *_in_stages(a, base, run, reading, index), run.spent
    why = " ".join(got.why for got in run.got.values()) or f"{todo.over[0]} does not fit into --max-mb."
    raise ModelNotFoundError(f"No base of {a.label} can be had. {why}", "Name another model as B.")


def _in_stages(
    a: Resolved, base: str, run: Session, reading: Progress | None, index: Index | None
) -> tuple[Resolved, Resolved, Judged]:
    """A model against one that is read in stages: one stage beyond what links, all stages where nothing does."""
    stage = 0
    while True:
        b = Resolved(run.read_last[base], base)
        pair = compare_resolved(a, b, index=index)
        stage += 1
        linked = pair.verdict == "linked" and stage > 1
        if linked or not (pair.is_open or pair.verdict == "linked") or stage > 2:
            return a, b, pair
        run.take(base, stage)
        if stage == 2:
            a = a.further(reading) or a
        if run.got[base].stage != stage:
            return a, b, pair


def claimed_bases(asked: Resolved) -> Mapping[str, Sequence[str]]:
    """Who claims which model as the base of one, by its id; UsageError if nobody claims any."""
    stated = claims_of(asked.fingerprint.model_id, asked.fingerprint.parents)
    claims = asked.claims if asked.claims is not None else stated
    if not claims:
        raise UsageError(
            f"{asked.label} names no base model: its card, config, adapter config and GGUF metadata do not.",
            "Name the model to compare it with.",
        )
    return claims


def _with_fetched(index: Index) -> Index:
    """The same index, with the rows that were fetched until now."""
    folder = fetched_folder()
    return index if folder is None else index.with_folder(folder)


def _stage_of(model_id: str, *, mode: str, stage: int) -> Fingerprint:
    """The fingerprint of a model of the Hub, or of its cache, read in a mode up to a stage; never of a folder here."""
    return fingerprint_model(open_model(model_id, mode=mode, local=False), mode=mode, stage=stage)


def _may_fetch(count: int) -> None:
    if count < 1:
        raise UsageError(f"--fetch is at least 1, not {count}.")
    if hub.offline_by_environment():
        raise UsageError("--fetch asks the Hub, and HF_HUB_OFFLINE forbids it.", "Unset it, or leave out --fetch.")


def with_slices(asked: Resolved) -> Resolved:
    """The same with the samples that an imported row is compared by, read from the weights, where its row lacks them.

    That is a model that was read in sampled mode, and one so large that the peer may have taken slices of its
    matrices. Without weights at hand nothing changes; where they are on the Hub, the reason is kept in place of the
    samples.
    """
    kept, ways = asked.fingerprint, _samples_lacking(asked)
    if asked.model is None or not ways:
        return asked
    found = tuple(slices(asked.model, sliced=sliced) for sliced in ways)
    return replace(asked, fingerprint=replace(kept, more={**kept.more, "slices": found}))


def _samples_lacking(asked: Resolved) -> list[bool]:
    """Which samples the row of a model lacks and its weights have: whole (False), sliced (True).

    Both, where the peer's files may have been of 32 bits or of 16, above its limit or below.
    """
    kept = asked.fingerprint
    if asked.model is None or "slices" in kept.more or kept.mode not in ("exact", "sampled"):
        return []
    whole = kept.mode == "sampled" and kept.facts.parameters < SLICED
    sliced = kept.facts.parameters >= WHOLE / 2
    return [way for way, wanted in ((False, whole), (True, sliced)) if wanted]


def _has_imported(index: Index, width: int) -> bool:
    """Whether an index has imported rows of a residual width."""
    return any(entry.row["hidden"] == width for entry in index.imported())


def fingerprint(
    reference: str | os.PathLike[str], *, index: Index | None = None, mode: str | None = None, offline: bool = False
) -> Fingerprint:
    """The fingerprint of any model reference: a folder, a weight file, a fingerprint file, or `org/name[@revision]`,
    which is looked up in the index (the default one if none is given), the Hub cache and the Hub.
    """
    return resolve(
        reference, index=_default_index(reference) if index is None else index, mode=mode, offline=offline
    ).fingerprint


def compare(
    a: Fingerprint | str | os.PathLike[str], b: Fingerprint | str | os.PathLike[str], *, deep: bool = False
) -> Pair:
    """The verdict on two models, given as fingerprints or references; `direction` is the role of A.

    deep: also look for a copy with another vocabulary and a rotated basis, which takes the weights of both.
    """
    found = compare_resolved(*(x if isinstance(x, Resolved) else _resolved(x) for x in (a, b)), deep=deep)
    return Pair(**vars(found))


def _resolved(x: Fingerprint | str | os.PathLike[str]) -> Resolved:
    return Resolved(x, x.model_id) if isinstance(x, Fingerprint) else resolve(x, index=_default_index(x))


def _default_index(reference: str | os.PathLike[str]) -> Index | None:
    """The default index, which is looked into for whatever is not a path."""
    return None if Path(reference).exists() else Index.load()


def compare_in_stages(
    a: Resolved, b: Resolved, *, reading: Progress | None = None, **more: Any
) -> tuple[Resolved, Resolved, Judged]:
    """`compare_resolved`; if stage 1 of sampled reading finds no link, stage 2 is read of whichever side has one."""
    first = compare_resolved(a, b, **{**more, "deep": False})
    further = [None, None] if first.verdict == "linked" else [side.further(reading) for side in (a, b)]
    a, b = (new or old for new, old in zip(further, (a, b), strict=True))
    return a, b, compare_resolved(a, b, **more) if any(further) or more.get("deep") else first


def compare_resolved(
    a: Resolved, b: Resolved, *, index: Index | None = None, deep: bool = False, offline: bool = False
) -> Judged:
    """The verdict on two resolved references; VOA is exact if both vocabularies are at hand.

    Where two layers of each show no link, all are read of those whose weights are at hand, as `query` does.

    index: whose chance levels are used; the default one if None. deep: adds the evidence `deep_agreement`. UsageError
    if the weights of one of them are not at hand, which is told before anything is compared. offline: never ask the Hub
    for the weights of an indexed model.
    """
    opened = [weights_of(x, offline=offline) for x in (a, b)] if deep else []
    reads = [file for model in opened for file in model.reads]
    ours, theirs = a.vocabulary(), b.vocabulary()
    both = (ours, theirs) if ours is not None and theirs is not None else None
    if a.fingerprint.mode == IMPORTED or b.fingerprint.mode == IMPORTED:
        a, b = with_slices(a), with_slices(b)
    found = settled(reads, lambda: deep_agreement(*opened)) if deep else None
    levels = calibration_of() if index is None else index.calibration

    def compared(x: Fingerprint, y: Fingerprint) -> Judged:
        with one_blas_thread():
            return compare_fingerprints(x, y, calibration=levels, vocabularies=both, deep=found)

    pair = compared(a.fingerprint, b.fingerprint)
    whole = [None, None] if pair.verdict == "linked" else [a.deeper(), b.deeper()]
    if any(whole):
        pair = compared(whole[0] or a.fingerprint, whole[1] or b.fingerprint)
    return beside_left_out(pair, [x.fingerprint for x in (a, b)])


def weights_of(found: Resolved, *, offline: bool = False) -> Model:
    """The open model of a resolved reference; that of an indexed model at the revision that was indexed.

    UsageError if only its fingerprint is at hand.
    """
    if found.model is not None:
        return found.model
    kept = found.fingerprint
    what = f"A deep comparison reads weights, and of {found.label} only the fingerprint is at hand"
    indexed = kept.indexed and kept.revision is not None and not kept.variant
    if not indexed and not found.elsewhere:
        raise UsageError(f"{what}.", "Name its folder, its weight file or org/name@revision.")
    try:
        return open_model(found.elsewhere or f"{kept.model_id}@{kept.revision}", offline=offline)
    except (ModelNotFoundError, NetworkError) as error:
        raise UsageError(f"{what}: {error.message}", "Name its folder or its weight file.") from error


def fill_index(
    folder: Path,
    sources: Sequence[str],
    *,
    create: bool,
    mode: str = "exact",
    offline: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add models to the index in a folder; one failed model never stops the rest.

    sources: models, folders of models, fingerprint files, list files; see `models.listing.expand`. create: make the
    index if there is none (`index build`); else there must be one (`index add`). report: told each step.
    """

    def read(source: str) -> Sequence[Fingerprint]:
        if source.endswith(".parquet") and Path(source).is_file():
            return parquet.read_fingerprints(Path(source))
        made = fingerprint(source, mode=mode, offline=offline)
        if made.mode == IMPORTED:
            raise ModelNotFoundError(
                f"The weights of {source} cannot be had, and its row here was imported from another tool.",
                "Name its folder or its weight file.",
            )
        return [made]

    return fill(folder, list(expand(sources)), read, create=create, report=report)


def sync_index(
    folder: Path,
    sources: Sequence[str],
    *,
    mode: str = "exact",
    prune: bool = False,
    processes: int = 1,
    report: Callable[[str], None] = lambda _: None,
    reading: Progress = lambda _, __: None,
    linking: Progress = lambda _, __: None,
) -> Built:
    """Make the rows of the models below some folders those of the index in a folder; it is made if there is none.

    sources: folders, whose models are called as their paths below it, or `name=path` of a model or of a folder of
    models. prune: remove the rows of models that are gone. processes: how many read models at once. report: is called
    with one line a model; reading, linking: with models that were read, or whose links were looked for, and with all.

    One failed model never stops the rest. Families follow from the links of the rows. Raises UsageError for a source
    that is no folder or holds no models: an unmounted drive looks like an empty one, and nothing is removed then.
    """
    found = _sources(sources)
    models = {name: one for name, one in found.items() if isinstance(one, tree.Found)}
    refused = {name: (str(one.path), one.why) for name, one in found.items() if isinstance(one, tree.Refused)}
    now = {
        name: keeping.Source(str(one.root.resolve()), str(one.path), one.stamp if one.settled else "")
        for name, one in models.items()
    }
    read = partial(_read_all, models, mode, processes)
    built = keeping.sync(
        folder, now, read, mode=mode, refused=refused, prune=prune, report=report, progress=reading,
    )  # fmt: skip
    return built if not len(built.index) else replace(built, index=update_families(folder, linking))


def _sources(sources: Sequence[str]) -> dict[str, tree.Found | tree.Refused]:
    """The models of some sources by their names; UsageError for a source without models, and for a name given twice."""
    found: dict[str, tree.Found | tree.Refused] = {}
    for source in sources:
        name, path = _named_path(source)
        below = tree.below(path, name)
        if not below:
            raise UsageError(
                f"{path} holds no models, so nothing was changed.",
                "Is the drive mounted? `provindex index remove` removes rows by their ids.",
            )
        for one in below:
            if one.name in found:
                raise UsageError(
                    f"{found[one.name].path} and {one.path} are both called {one.name}.",
                    "Give one of them a name of its own: name=path.",
                )
            found[one.name] = one
    return found


def _named_path(source: str) -> tuple[str, Path]:
    """What a source is called, "" if that follows from its path, and where it is."""
    name, given, path = source.partition("=")
    if not given or is_there(source):
        name, path = "", source
    if not (is_there(path) and path):
        raise UsageError(f"{source} is no folder and no weight file.", "Name a folder of models, or name=path.")
    return name.strip("/"), Path(path)


def _read_all(
    models: Mapping[str, tree.Found], mode: str, processes: int, names: Sequence[str]
) -> Iterator[tuple[str, Fingerprint | str]]:
    """The fingerprint of each of some models, or why there is none, in their order."""
    read = partial(_read_one, mode)
    wanted = [models[name] for name in names]
    if processes < 2 or len(wanted) < 2:
        yield from ((one.name, read(one)) for one in wanted)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks that our threads hold
    with ProcessPoolExecutor(min(processes, len(wanted)), mp_context=spawn, initializer=_die_when_interrupted) as pool:
        try:
            for one, made in zip(wanted, pool.map(read, wanted), strict=True):
                yield one.name, made
        except BrokenProcessPool as error:
            raise ModelError(
                "A process that read models was killed, perhaps because memory ran out; what was done is saved.",
                "Run the command again, with fewer --processes.",
            ) from error
        except BaseException:  # interrupted: at once
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _die_when_interrupted() -> None:
    """In a process that reads models: an interrupt ends it without a word; the first process says so once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    places.limit_blas_threads()


def _read_one(mode: str, found: tree.Found) -> Fingerprint | str:
    """The fingerprint of a model below a folder, called as it is there; or why there is none."""
    try:
        opened = open_model(found.path, mode=mode, offline=True, within=found.root)
        _, made = _through_cache(opened, mode, found.path)
        return made if found.own_id else replace(made, model_id=found.name)
    except ProvindexError as error:
        return str(error)
    except OSError as error:
        return printable(f"{error.strerror or error}.")


def remove_rows(folder: Path, ids: Sequence[str]) -> Built:
    """Remove the rows of some ids (`model_id[@revision][#variant]`) from the index in a folder, all of them or none.

    ModelNotFoundError, with suggestions, for an id that has no row.
    """
    built = keeping.remove(folder, ids, not_indexed)
    return replace(built, index=update_families(folder) if len(built.index) else built.index)


def export_index(
    output: Path,
    references: Sequence[Reference] = (),
    ids: Sequence[str] = (),
    *,
    progress: Progress = lambda _, __: None,
) -> Built:
    """Write indexes, or the rows of some ids of them, to one place that can be carried to another machine.

    output: a new folder, which is an index, or a file.parquet of fingerprints, for few models. references: as for
    `Index.load`. Families are written into the rows, and no path of this machine. UsageError if the place is taken,
    ModelNotFoundError, with suggestions, for an id that has no row.
    """
    return export(Index.load(*references), output, ids, not_indexed, progress)


def not_indexed(index: collection.Index, reference: str) -> ModelNotFoundError:
    """The error for an id that has no row in an index, with ids that look like it."""
    return ModelNotFoundError(
        f"{reference} is not in the index {index.info.id}.",
        did_you_mean(alike(reference, sorted({entry.model_id for entry in index})))
        or "`provindex index list` lists its ids.",
    )


def add_fetching(
    folder: Path,
    sources: Sequence[str],
    count: int,
    *,
    mode: str = "exact",
    limit: int | None = None,
    report: Callable[[str], None] = lambda _: None,
    planned: Callable[[Plan], None] = lambda _: None,
) -> tuple[Built, Spent]:
    """Add models to the index in a folder, and for each the `count` models of the catalogue that look most like its
    ancestors, by their norms and biases from the Hub.

    The rest is as for `fill_index` and `query_fetching`. What cannot be had from the Hub is noted and is no failure.
    """
    _may_fetch(count)
    built = fill_index(folder, sources, create=False, mode=mode, report=report)
    wanted: dict[str, Neighbour] = {}
    like = Shape()
    for entry in (entry for label in (*built.added, *built.present) for entry in built.index.find(label)):
        fp = entry.load()
        like = Look.of(fp).shape
        for neighbour in built.index.neighbours(fp)[:count]:
            wanted.setdefault(neighbour.model_id.lower(), neighbour)
    limit = LIMIT if limit is None else limit
    todo = plan(list(wanted.values()), len(wanted), limit, like, further=False)
    planned(todo)
    with session(todo, _stage_of, folder, report) as run:
        run.take_planned()
    return replace(built, index=Index.load(folder), added=(*built.added, *run.rows)), run.spent


def outdated_fetched() -> tuple[int, int] | None:
    """(models, fingerprint version) of the index of fetched models if an older provindex made it: it is left out."""
    folder = places.fetched_index()
    manifest = older_manifest(folder) if folder.exists() else None
    return None if manifest is None else (manifest.models, manifest.fingerprint_version)


def pull(
    reference: str | None = None,
    *,
    sha256: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    making: Progress = lambda _, __: None,
    report: Callable[[str], None] = lambda _: None,
) -> Pulled:
    """Put a dataset of the Hub, `org/name[@revision]`, in force on this machine; the default one if None.

    A dataset of fingerprints then answers where no index is named. Of another tool's database (`peers/table.py`) the
    archive is fetched and rows are made of it; they answer beside that index. sha256: of another release of such an
    archive. progress: told bytes fetched and bytes in all. making: told rows that were looked at and rows in all.
    report: told each row. What is here is not fetched or made again. Raises UsageError, NetworkError, IndexFormatError;
    the index that was in force then stays.
    """
    from provindex.peers.table import peer_of

    repo, revision = parse(reference or places.default_dataset())
    peer = peer_of(repo)
    if peer is None:
        if sha256 is not None:
            raise UsageError(
                f"{repo} is a dataset of fingerprints, and its own manifest has its digests.", "Leave out --sha256."
            )
        return pull_dataset(reference, offline=offline, progress=progress)
    source = replace(peer.archive, sha256=sha256 or peer.archive.sha256)
    make = partial(peer.make, sha256=source.sha256, report=report, progress=making)
    asked = peer.repo if revision is None else f"{peer.repo}@{revision}"
    return pull_made(asked, source, peer.recipe(), make, offline=offline, progress=progress)


def import_database(
    root: Path,
    output: Path,
    *,
    deep: Path | None = None,
    sha256: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Built:
    """Add the models of Cisco's model-provenance-kit to the index in a folder, which is made if there is none.

    root: its database. deep: deep-signals.zip or its unpacked folder; see `fetch_deep_signals`. sha256: of the zip
    file; None: that of the published one. report: is called with one line a step. Raises IndexFormatError or UsageError
    if the catalogue or the zip file cannot be used; nothing is written then.
    """
    from provindex.peers import cisco

    return cisco.import_database(root, output, deep=deep, sha256=sha256 or cisco.PINNED, report=report)


def fetch_deep_signals(
    source: str, sha256: str | None = None, *, offline: bool = False, progress: Progress | None = None
) -> Path:
    """The path of Cisco's deep signals: `source` itself if it is a path, else the zip file, fetched from that dataset.

    source: deep-signals.zip, its unpacked folder, or `org/name[@revision]` of a dataset on the Hub. sha256: as for
    `import_database`. progress: is called with bytes fetched and bytes in all. Raises IndexFormatError if the dataset
    has no such file or one with another digest, NetworkError.
    """
    from provindex.peers import cisco

    if not is_reference(source):
        return Path(source)
    return fetch_file(source, cisco.ARCHIVE, sha256 or cisco.PINNED, offline=offline, progress=progress)
