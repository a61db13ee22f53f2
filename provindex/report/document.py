"""Answers as plain documents: the JSON contract. Every other report renders one of these.

Within a schema number fields are only added. No colors, durations, host names or absolute paths: equal input, equal
bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from provindex.audit import licenses
from provindex.audit.findings import Audit
from provindex.audit.gate import Denial, Gate
from provindex.catalogue.alike import Neighbour
from provindex.catalogue.table import Known, family_of, known, license_of
from provindex.common.bounded_json import visible
from provindex.common.files import FileFact, now, without_path
from provindex.common.reasons import Code, Reason, distinct
from provindex.common.score import Chance, Outcome, Score
from provindex.common.version import __version__
from provindex.fingerprint.record import FINGERPRINT_VERSION, Fingerprint
from provindex.fingerprint.rows import to_row
from provindex.hub.fetch import Spent
from provindex.hub.pull import Origin, Pulled
from provindex.hub.push import Sent
from provindex.index.answer import Comparison, Match, QueryResult
from provindex.index.collection import Index
from provindex.index.entries import Entry, IndexInfo, Problem
from provindex.index.fill import Built
from provindex.index.pulled import Current
from provindex.peers.table import BrandOf, brand_of, organisation
from provindex.report.words import document as coded
from provindex.report.words import documents as all_coded
from provindex.report.words import joined, text, texts
from provindex.verdict.calibration import NO_CALIBRATION
from provindex.verdict.pair import LOG10_E_LINKED, Pair
from provindex.verdict.relation import LOG10_P_LINKED

Document = dict[str, Any]

NO_ADVICE = "Findings are facts to look at, not legal advice."
BEYOND_DOUBT, VERY_STRONG = -30, -9  # log10 of E-values; `words.CERTAINTIES` says them
PEER_NOTE = "peer-compatible (cisco model-provenance-kit 1.0.0), not decisive"


def dumps(document: Document) -> str:
    """A document as text: two spaces a level, fields as they were put, letters kept, a newline at the end."""
    return visible(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def line_of(document: Document) -> str:
    """A document as one line, for lists of them: the same fields, no spaces."""
    return visible(json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))) + "\n"


def _head(schema: str, index: IndexInfo | None, settings: Mapping[str, object], status: str) -> Document:
    return {
        "schema": schema,
        "tool": {"name": "provindex", "version": __version__},
        "index": _index(index),
        "settings": {**settings, "log10_p_linked": LOG10_P_LINKED, "log10_e_linked": LOG10_E_LINKED},
        "warnings": [],
        "status": status,
    }


def _index(info: IndexInfo | None) -> Document | None:
    if info is None:
        return None
    return {
        "id": info.id,
        "revision": info.revision,
        "built": info.built,
        "models": info.models,
        "fingerprint_version": info.fingerprint_version,
    }


def model_facts(fp: Fingerprint) -> Document:
    """What identifies a model in an answer. What it does not state of itself, the catalogue says of its id."""
    license_name, license_source = license_of(fp.model_id, fp.license)
    return {
        "model_id": fp.model_id,
        "revision": fp.revision,
        "variant": fp.variant,
        "content_sha256": fp.content_sha256,
        "parameters": fp.facts.parameters,
        "architecture": fp.facts.architecture,
        "precision": fp.facts.precision,
        "license": license_name,
        "license_source": license_source,
        "family": family_of(fp.model_id, fp.family),
        "parents": list(fp.parents),
        "id_certainty": fp.id_certainty,
        "mode": fp.mode,
        "bytes_read": fp.bytes_read,
        "bytes_total": fp.bytes_total,
        "indexed": fp.indexed,
    }


def notes(fp: Fingerprint) -> list[Reason]:
    """What a reader of an answer must know of a fingerprint: its warnings, and a tokenizer that was refused."""
    refused = fp.absences.get("TFV")
    if refused is None or refused.code is Code.NO_TOKENIZER:
        return list(fp.warnings)
    return [*fp.warnings, Reason.of(Code.TOKENIZER_NOT_READ, because=[refused])]


def query_document(
    result: QueryResult,
    gate: Gate | None = None,
    fetched: Spent | None = None,
    *,
    evidence: bool = True,
    shown: Sequence[str] = (),
) -> Document:
    """provindex.query/1; gate: what a policy made of the answer; fetched: what --fetch read. evidence: False for text,
    which shows no outcome of a test: those that decided nothing are then not made. shown: what a text shows besides:
    "signals", "untested".
    """
    denied = () if gate is None else gate.denied
    rules = [] if gate is None else [rule.text for rule in gate.policy.deny]
    trusted = [] if gate is None or gate.own_bytes else [Reason.of(Code.ROW_TRUSTED)]
    return {
        **_head(
            "provindex.query/1", result.index, {**result.settings, "deny": rules, "shown": list(shown)}, result.status
        ),
        **_warnings(distinct([*trusted, *notes(result.query), *result.warnings])),
        "query": model_facts(result.query),
        "left_out": _left_out(result.query),
        "matches": [_match(m, evidence) for m in result.matches],
        "candidates": [_match(m, evidence) for m in result.candidates],
        "families": [
            {
                "family": f.family,
                "best_model_id": f.best_model_id,
                "matches": f.matches,
                "models": f.models,
                "log10_p": _rounded(f.log10_p),
            }
            for f in result.families
        ],
        "coverage": _coverage(result),
        "neighbours": [_neighbour(n) for n in result.neighbours],
        "fetched": None if fetched is None else fetched_document(fetched),
        "own_row": None if result.own is None else {"model_id": result.own.model_id, "family": result.own.family},
        "denied": [
            {"id": d.id, "status": d.status, "reason": text(d.reason), "reason_codes": [coded(d.reason)]}
            for d in denied
        ],
        "gate": None if gate is None else gate_document(gate),
    }


def gate_document(gate: Gate) -> Document:
    """What a policy made of an answer: `status`, and the state of every rule and of every row that it names."""
    return {
        "status": gate.status,
        "exit_status": gate.exit_status,
        "policy": gate.policy.source or None,
        "own_bytes": gate.own_bytes,
        "deny_related": gate.policy.deny_related,
        "on_inconclusive": gate.policy.on_inconclusive,
        "on_not_comparable": gate.policy.on_not_comparable,
        "allow": [rule.text for rule in gate.policy.allow],
        "denied": [_denial(denial) for denial in gate.denied],
        "ignored": [
            {
                "id": one.rule.text, "reason": one.reason, "holds": holds,
                "expires": None if one.expires is None else one.expires.isoformat(),
                "models": [entry.label for entry in rows],
            }
            for one, holds, rows in gate.ignored
        ],
        "excluded": [{"text": text(reason), **coded(reason)} for reason in gate.excluded],
    }  # fmt: skip


def _denial(denial: Denial) -> Document:
    return {
        "id": denial.id,
        "state": denial.state,
        "reasons": [text(denial.reason)],
        "reason_codes": [coded(denial.reason)],
        "states": dict(denial.counts),
        "models": [
            {
                "model_id": row.entry.model_id, "revision": row.entry.revision, "variant": row.entry.variant,
                "state": row.state, "reasons": [text(row.reason)], "reason_codes": [coded(row.reason)],
            }
            for row in denial.rows
        ],
    }  # fmt: skip


def _coverage(result: QueryResult) -> Document:
    """How far an answer reaches: counts of models of the index, and ids of the catalogue that it has no row of."""
    found = result.coverage
    return {
        "models": found.models,
        "compared": found.compared,
        "tested": found.tested,
        "tested_in_plain_order": found.plain_order,
        "untested": found.untested,
        "alike": found.alike,
        "alike_tested": found.alike_tested,
        "same_architecture": found.same_type,
        "same_width_not_compared": found.of_width,
        "alike_not_compared": [n.model_id for n in result.neighbours],
    }


def _left_out(fp: Fingerprint, **more: str) -> list[Document]:
    """What was not read of a model's files, or not compared: a denial that rests on nothing else is not passed."""
    return [{"what": _what(r), "code": str(r.code), "text": text(replace(r, subject="")), **more} for r in fp.left_out]


def _what(reason: Reason) -> str:
    """The file, entry or first tensor that was left out."""
    figures = dict(reason.figures)
    inside = figures.get("entry") or figures.get("first") or ""
    return ": ".join(filter(None, (reason.subject, str(inside)))) or str(reason.code)


def fetched_document(fetched: Spent) -> Document:
    """What --fetch planned and read. state: "fetched", or what stood in the way of the last stage that was tried."""
    return {
        "asked": fetched.plan.asked, "planned_bytes": fetched.plan.bytes, "planned_most": fetched.plan.most,
        "limit_bytes": fetched.plan.limit,
        "over_budget": list(fetched.plan.over), "bytes": fetched.bytes, "requests": fetched.requests,
        "models": [
            {
                "model_id": got.model_id, "claimed_by": list(got.claims), "state": str(got.state), "stage": got.stage,
                "bytes": got.bytes, "requests": got.requests, "reason": got.why or None,
            }
            for got in fetched.got
        ],
    }  # fmt: skip


def _neighbour(neighbour: Neighbour) -> Document:
    """A model that looks like an ancestor and was not compared: facts of the catalogue, null where it has none."""
    one = neighbour.known or Known(neighbour.model_id)
    return {
        "model_id": neighbour.model_id, "claimed_by": list(neighbour.claims), "shared": list(neighbour.shared),
        "bits": round(neighbour.bits, 2), "family": one.family or None, "license": one.license or None,
        "license_source": one.license_source or None, "parent": one.parent or None,
        "architecture": one.shape.model_type or None, "hidden": one.shape.hidden or None,
        "layers": one.shape.layers or None,
    }  # fmt: skip


def compare_document(
    answer: Comparison, fetched: Spent | None = None, outcome: tuple[str, str, Reason] | None = None
) -> Document:
    """provindex.compare/1; fetched: what --fetch read; outcome: status of the gate --expect, and the pair's state."""
    sides = (("a", answer.a), ("b", answer.b))
    return {
        **_head("provindex.compare/1", answer.index, answer.settings, answer.status),
        "warnings": [f"{side}: {text(note)}" for side, fp in sides for note in notes(fp)],
        "warning_codes": [{**coded(note), "side": side} for side, fp in sides for note in notes(fp)],
        "left_out": [left for side, fp in sides for left in _left_out(fp, side=side)],
        "a": model_facts(answer.a),
        "b": model_facts(answer.b),
        "gate": None if outcome is None else _expected(answer.b, *outcome),
        "retrieval": None,
        "fetched": None if fetched is None else fetched_document(fetched),
        **_pair(answer.pair, answer.pair.direction),
    }


def audit_document(found: Audit, *, strict: bool = False) -> Document:
    """provindex.audit/1: what a model says of itself, what its weights say of that, and what follows."""
    result, fp = found.result, found.result.query
    trusted = [] if found.own_bytes else [Reason.of(Code.ROW_TRUSTED)]
    return {
        **_head("provindex.audit/1", result.index, {**result.settings, "strict": strict}, result.status),
        **_warnings(distinct([*trusted, *notes(fp), *result.warnings])),
        "date": found.day.isoformat(),
        "model": {
            **model_facts(fp),
            "license": found.chain[0].license,  # a GGUF file states one too
            "own_bytes": found.own_bytes,
            "fingerprint_version": fp.version,
            "row_sha256": to_row(fp)["row_sha256"],
            "files": [_file(file) for file in found.files],
            "stated": {
                "names": list(found.stated.names), "base_model_relation": found.stated.relation or None,
                "license_name": found.stated.license_name or None, "license_link": found.stated.license_link or None,
                "datasets": list(found.stated.datasets), "quantized_by": found.stated.quantized_by or None,
                "license_files": None if found.stated.license_files is None else list(found.stated.license_files),
            },
        },
        "matches": [_match(m, True) for m in result.matches],
        "claims": [
            {
                "kind": one.claim.kind, "value": one.claim.value, "source": one.claim.source, "status": one.status,
                "reasons": list(texts(one.reasons)), "reason_codes": all_coded(one.reasons),
                "next_step": None if one.next_step is None else text(one.next_step),
            }
            for one in found.claims
        ],
        "license_chain": [
            {
                "model_id": link.model_id, "license": link.license, "source": link.source or None, "role": link.role,
                "by": link.by or None, "relation": link.relation or None, "direction": link.direction or None,
                "sure": link.sure, "known_as": licenses.names(link.terms),
            }
            for link in found.chain
        ],
        "findings": [
            {
                "code": one.code, "severity": one.severity, "text": text(one.reason),
                "model_ids": list(one.model_ids), "clause_url": one.clause_url or None,
                "reason_code": coded(one.reason),
            }
            for one in found.findings
        ],
        "left_out": _left_out(fp),
        "coverage": _coverage(result),
        "note": NO_ADVICE,
    }  # fmt: skip


def _file(file: FileFact) -> Document:
    return {"name": file.name, "bytes": file.size, "sha256": file.sha256}


def dated(document: Document) -> Document:
    """A document for a report, with the day on which it was made; SOURCE_DATE_EPOCH fixes the day."""
    return document if "date" in document else {**document, "date": f"{now():%Y-%m-%d}"}


def pair_document(a: Mapping[str, str], b: Mapping[str, str], pair: Pair) -> Document:
    """The fields of `provindex.compare/1` that are of the pair itself. a, b: `model_id` and `variant` of both sides."""
    return {"a": dict(a), "b": dict(b), **_pair(pair, pair.direction, evidence=False)}


def _expected(b: Fingerprint, status: str, state: str, reason: Reason) -> Document:
    """What --expect found, in the form of the gate of a query."""
    one = {"id": b.label, "state": state, "reasons": [text(reason)], "reason_codes": [coded(reason)]}
    return {"status": status, "denied": [one]}


def _match(match: Match, evidence: bool) -> Document:
    row = match.entry.row
    license_name, license_source = license_of(row["model_id"], row["license"])
    return {
        "model_id": row["model_id"],
        "revision": row["revision"],
        "variant": row["variant"],
        "mode": row["mode"],
        "family": match.entry.family,
        "parents": list(row["parents"]),
        "license": license_name,
        "license_source": license_source,
        "claimed_parents": _claimed_parents(row["model_id"], row["parents"]),
        "id_certainty": row["id_certainty"],
        "retrieval": {"rank": match.rank, "score": round(match.score, 4)},
        "copies": [entry.label for entry in match.copies],
        **_pair(match.pair, match.direction, evidence=evidence),
    }


def _claimed_parents(model_id: str, stated: Sequence[str]) -> list[Document]:
    """Models that a row claims as its parents, and the catalogue's. source: "model" for what its own files say."""
    found = [{"model_id": name, "source": "model"} for name in stated]
    entry = known(model_id)
    if entry is not None and entry.parent and entry.parent not in stated:
        found.append({"model_id": entry.parent, "source": entry.parent_source})
    return found


def _certainty(pair: Pair) -> str | None:
    """How certain a link is, as a code of `words.CERTAINTIES`; None without a link."""
    if pair.verdict != "linked":
        return None
    if pair.log10_e is None or pair.log10_e > LOG10_E_LINKED:
        return "by-rank"
    return (
        "beyond-doubt" if pair.log10_e <= BEYOND_DOUBT else "very-strong" if pair.log10_e <= VERY_STRONG else "strong"
    )


def _pair(pair: Pair, direction: str | None, *, evidence: bool = True) -> Document:
    return {
        "verdict": pair.verdict,
        "relation": pair.relation,
        "direction": direction,
        "direction_reasons": list(texts(pair.direction_reasons)),
        "direction_reason_codes": all_coded(pair.direction_reasons),
        "undone": [text(Reason(code)) for code in pair.undone],
        "undone_codes": list(map(str, pair.undone)),
        "certainty": _certainty(pair),
        "confidence": pair.confidence,
        "log10_p": _rounded(pair.log10_p),
        "e_value": None if pair.e_value is None else float(f"{pair.e_value:.6g}"),
        "log10_e": _rounded(pair.log10_e),
        "pipeline_score": pair.pipeline.value,
        "pipeline": {
            "label": pair.pipeline.label,
            "decision": pair.pipeline.decision,
            "basis": pair.pipeline.basis,
            "identity": pair.pipeline.identity,
            "tokenizer": pair.pipeline.tokenizer,
            "mfi_tier": pair.mfi_tier,
            "missing": list(pair.pipeline.missing),
            "note": PEER_NOTE,
        },
        "signals": {name: _signal(score) for name, score in pair.signals.items()},
        "evidence": {name: _outcome(outcome) for name, outcome in pair.evidence.items()} if evidence else {},
        "layer_map": [
            {"stack": r.stack, "from": list(r.a), "to": list(r.b), "log10_p": _rounded(r.log10_p)}
            for r in pair.layer_map
        ],
        "reasons": list(texts(pair.reasons)),
        "reason_codes": all_coded(pair.reasons),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4) + 0.0  # + 0.0: no negative zero


def _signal(score: Score) -> Document:
    if score.value is None:
        return _absent(score.reasons)
    if score.chance is None:
        return {"value": score.value, "chance": None, "chance_reason": text(NO_CALIBRATION), "n": score.n}
    above = score.chance.exceeded_by(score.value)
    return {"value": score.value, "chance": _chance(score.chance), "above_chance": above, "n": score.n}


def _chance(chance: Chance) -> Document:
    """Quantiles over the unrelated pairs, how many and which pairs; the reason if there is no 99.9th percentile."""
    found: Document = {
        "median": chance.median, "p999": chance.p999, "p99": chance.p99, "n": chance.n, "stratum": chance.stratum,
    }  # fmt: skip
    return found if chance.reason is None else {**found, "reason": text(chance.reason)}


def _absent(reasons: Sequence[Reason]) -> Document:
    """A signal or test without a value, and why."""
    return {"value": None, "reason": joined(reasons), "reason_codes": all_coded(reasons)}


def _warnings(reasons: Sequence[Reason]) -> Document:
    return {"warnings": list(texts(reasons)), "warning_codes": all_coded(reasons)}


def _outcome(outcome: Outcome) -> Document:
    if outcome.value is None:
        return _absent(outcome.reasons)
    found: Document = {
        "value": _rounded(outcome.value),
        "n": outcome.n,
        "log10_p": _rounded(outcome.log10_p),
        "chance": _rounded(outcome.chance),
    }
    if outcome.null is not None:
        found["null"] = _chance(outcome.null)
    if outcome.conformal is not None:
        found["conformal_log10_p"] = _rounded(outcome.conformal)
    if outcome.smallest is not None:
        found["smallest_cosine"] = _rounded(outcome.smallest)
    return found


def fingerprint_document(fp: Fingerprint, written: str | None) -> Document:
    """provindex.fingerprint/1; written: name of the file that it was written to."""
    row = to_row(fp)
    return {
        **_head("provindex.fingerprint/1", None, {"mode": fp.mode}, "decided"),
        **_warnings(notes(fp)),
        "fingerprint_version": FINGERPRINT_VERSION,
        "model": model_facts(fp),
        "left_out": _left_out(fp),
        "row_sha256": row["row_sha256"],
        "absences": {name: text(reason) for name, reason in fp.absences.items()},
        "absence_codes": {name: coded(reason) for name, reason in fp.absences.items()},
        "output": written,
    }


def index_document(
    index: Index,
    problems: list[Problem] | None = None,
    built: Built | None = None,
    pulled: Pulled | None = None,
    origins: Sequence[Origin] | None = None,
    listed: bool = False,
    fetched: Spent | None = None,
) -> Document:
    """provindex.index/1; problems: what `verify` found, None if it was not asked; built: what a build did; pulled: what
    a pull did; origins: where `status` found that the indexes came from; listed: whether it is asked for every row;
    fetched: what `add --fetch` read.
    """
    families = Counter(entry.family for entry in index)
    status = "inconclusive" if problems or (built is not None and built.failed) else "decided"
    found: Document = {
        **_head("provindex.index/1", index.info, {}, status),
        "models": [_entry(entry, index.info.built) for entry in sorted(index, key=lambda e: e.key)],
        "families": [{"family": name, "models": count} for name, count in sorted(families.items())],
        "bytes": sum(f.stat().st_size for folder in index.folders for f in folder.rglob("data/*/*.parquet")),
    }  # fmt: skip
    if problems is not None:
        found["problems"] = [{"where": p.where, "what": p.what} for p in problems]
    if built is not None:
        found["added"], found["present"] = list(built.added), list(built.present)
        found["replaced"], found["removed"] = list(built.replaced), list(built.removed)
        found["gone"] = list(built.gone)
        found["failed"] = [_failed(built, source, why) for source, why in built.failed]
    if pulled is not None:
        found["pulled"] = {
            **_origin(pulled.current), "changed": pulled.changed, "files_fetched": pulled.fetched,
            "bytes_fetched": pulled.bytes_fetched, "bytes_total": pulled.bytes_total,
            "rows_made": pulled.made, "rows_kept": pulled.kept,
        }  # fmt: skip
    if fetched is not None:
        found["fetched"] = fetched_document(fetched)
    if origins is not None:
        found["origins"] = [{**_origin(o.current), "update": _update(o)} for o in origins]
    if listed:
        found["listed"] = _counts(index, found["models"])
    return found


def _failed(built: Built, source: str, why: str) -> Document:
    """A model that could not be read: its name below the folder that was named, else that of its file or folder."""
    name = source if source in built.paths else Path(source).name
    return {"source": name, "reason": without_path(why, built.paths.get(source, source), name)}


def _counts(index: Index, models: Sequence[Document]) -> Document:
    """How many of what there are. families: lineages, stated by rows or the catalogue; brands: what other tools say."""
    known = [m["stated_family"] or m["catalogue_family"] or m["linked_family"] for m in models]
    publishers = Counter(m["publisher"] for m in models if m["publisher"])
    brands = Counter((m["brand"]["by"], m["brand"]["id"], m["brand"]["name"]) for m in models if m["brand"])
    return {
        "models": len(models),
        "families": len(set(filter(None, known))),
        "without_family": known.count(None),
        "brands": [
            {"by": by, "id": name, "name": shown, "models": count}
            for (by, name, shown), count in sorted(brands.items())
        ],
        "publishers": [{"publisher": name, "models": count} for name, count in sorted(publishers.items())],
    }


def _entry(entry: Entry, built: str) -> Document:
    row, brand = entry.row, brand_of(entry.model_id)
    license_name, license_source = license_of(entry.model_id, row["license"])
    return {
        "model_id": entry.model_id, "revision": entry.revision, "variant": entry.variant, "family": entry.family,
        "license": license_name, "license_source": license_source, "architecture": row["architecture"],
        "parameters": row["parameters"],
        "mode": row["mode"], "row_sha256": entry.row_sha256, "source": row["source"],
        "stated_family": entry.stated_family, "catalogue_family": family_of(entry.model_id, None),
        "linked_family": entry.linked_family,
        "brand": _brand(brand),
        "publisher": organisation(entry.model_id) or (brand.publisher if brand else None),
        "made": entry.rows.made or built[:10] or None,
    }  # fmt: skip


def _brand(brand: BrandOf | None) -> Document | None:
    """The family that another tool gives a model: a brand, and no lineage."""
    return (
        None if brand is None else {"by": brand.tool, "id": brand.id, "name": brand.name, "publisher": brand.publisher}
    )


def _origin(current: Current) -> Document:
    return {
        "repo": current.repo, "commit": current.commit, "asked": current.asked, "pulled": current.pulled,
        "left_out": [{"path": o.path, "reason": o.reason} for o in current.left_out],
        "archive": None if current.source is None else {"path": current.source.path, "sha256": current.source.sha256},
    }  # fmt: skip


def _update(origin: Origin) -> Document:
    """What an update would fetch; looked: false if nobody asked the Hub, with the reason."""
    ahead = origin.ahead
    if ahead is None:
        return {"looked": False, "reason": origin.reason}
    return {
        "looked": True, "available": origin.changed, "commit": ahead.remote.commit, "files": len(ahead.missing),
        "bytes": ahead.bytes_missing,
        "sha256": next((ahead.files[path].digest for path in ahead.missing), None) if origin.current.source else None,
    }  # fmt: skip


def push_document(sent: Sent, settings: Mapping[str, object]) -> Document:
    """provindex.push/1: every cell of the row that is sent, long ones by their size, and where it went."""
    cells = {name: _cell(value) for name, value in sent.row.items()}
    dry = bool(settings["dry_run"])
    return {
        **_head("provindex.push/1", None, settings, "inconclusive" if sent.objections else "decided"),
        **_warnings(sent.warnings),
        "to": sent.repo,
        "model": model_facts(sent.fingerprint),
        "fingerprint_version": FINGERPRINT_VERSION,
        "row_sha256": sent.row["row_sha256"],
        "files": [{"path": path, "bytes": size, "sha256": sha256} for path, size, sha256 in sent.files],
        "row": cells,
        "sent": not dry,
        "commit": sent.commit,
        "pull_request": sent.pull_request,
        "objections": list(sent.objections),
    }


def _cell(value: Any) -> Any:
    """A cell as it is, if a person can read it; else how much of what it holds."""
    if isinstance(value, np.ndarray):
        return {"values": int(value.size), "type": str(value.dtype)}
    if isinstance(value, list) and len(value) > 20:
        return {"values": len(value), "type": "text", "first": value[0]}
    return value
