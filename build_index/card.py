"""The dataset card with the numbers of an index: `python -m build_index card DIR [--repo ORG/NAME] [-o FILE]`.

The text is dataset_card/README.md itself, which holds the numbers of the embedded index: the block of numbers, the
class of its size and the id of the dataset are replaced, the rest is kept. So the card can be read where it lies, and
what is published is what was reviewed.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from provindex.api import Index
from provindex.common.errors import ProvindexError
from provindex.common.places import DEFAULT_DATASET
from provindex.fingerprint.record import FINGERPRINT_VERSION
from provindex.fingerprint.rows import Row
from provindex.index import dataset
from provindex.index.entries import Entry

CARD = Path(__file__).parent.parent / "dataset_card" / "README.md"
BEGIN, END = "<!-- numbers -->", "<!-- /numbers -->"
SIZES = (("n<1K", 1_000), ("1K<n<10K", 10_000), ("10K<n<100K", 100_000), ("100K<n<1M", 1_000_000))
LARGEST = "1M<n<10M"  # as the Hub names the classes
SHOWN = 12  # licenses and architectures; the others are counted together


def render(index: Index, repo: str = DEFAULT_DATASET) -> str:
    """The card of an index that is or will be published as `repo`; ProvindexError if the text has lost its marks."""
    text = CARD.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or "size_categories:" not in before:
        raise ProvindexError(f"{CARD.name} has no block of numbers between {BEGIN} and {END}.", "Restore it.")
    before = re.sub(r"(size_categories:\n- ).*", lambda m: m[1] + size_class(len(index)), before)
    whole = f"{before}{BEGIN}\n{numbers(index)}\n{END}{after}"
    return whole.replace(DEFAULT_DATASET, repo)


def size_class(models: int) -> str:
    """How the Hub calls a dataset of so many rows."""
    return next((name for name, limit in SIZES if models < limit), LARGEST)


def numbers(index: Index) -> str:
    """What an index holds, as Markdown tables."""
    rows = [(entry, entry.row) for entry in sorted(index, key=lambda e: e.key)]
    facts = _table(("what", "number"), _facts(index, rows))
    tables = [
        ("license", Counter(row["license"] or "not stated" for _, row in rows)),
        ("architecture", Counter(row["architecture"] or "unknown" for _, row in rows)),
    ]
    parts = [facts, *(_table((name, "models"), _counted(counts)) for name, counts in tables)]
    return "\n\n".join(parts)


def _facts(index: Index, rows: Sequence[tuple[Entry, Row]]) -> list[tuple[str, str]]:
    modes = Counter(row["mode"] for _, row in rows)
    sizes = sorted(size for folder in index.folders for size in _bytes_of_models(folder))
    calibration = index.calibration
    pairs = calibration.strata["pooled"].pairs if calibration else 0
    publishers = {entry.model_id.split("/")[0] for entry, _ in rows if "/" in entry.model_id}
    return [
        ("models", f"{len(rows):,}"),
        ("families (weight lineages; a model whose lineage nobody stated is its own)", f"{_families(rows):,}"),
        ("publishers", f"{len(publishers):,}"),
        ("variants (another dress of a model: quantized, converted)", f"{sum(bool(e.variant) for e, _ in rows):,}"),
        ("how weights were read", ", ".join(f"{mode} {count:,}" for mode, count in sorted(modes.items())) or "-"),
        ("parameters of the largest model", f"{max((row['parameters'] for _, row in rows), default=0):,}"),
        ("bytes of all shards", f"{sum(sizes):,.0f}"),
        ("bytes a model, median of the shards", f"{statistics.median(sizes) if sizes else 0:,.0f}"),
        ("pairs of unrelated models behind the chance levels", f"{pairs:,}"),
        ("fingerprint version", str(FINGERPRINT_VERSION)),
        ("built", index.info.built[:10]),
    ]


def _families(rows: Iterable[tuple[Entry, Row]]) -> int:
    return len({entry.family for entry, _ in rows})


def _bytes_of_models(folder: Path) -> list[float]:
    """Bytes a model of each shard, once for each of its models."""
    shards = dataset.read_manifest(folder).shards
    return [sum(shard.bytes.values()) / shard.rows for shard in shards for _ in range(shard.rows)]


def _counted(counts: Counter[str]) -> list[tuple[str, str]]:
    """The most frequent, then how many others; equal counts by name."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[SHOWN:])
    lines = [(name, f"{count:,}") for name, count in ordered[:SHOWN]]
    return [*lines, *([(f"{len(ordered) - SHOWN} others", f"{rest:,}")] if rest else [])]


def _plain(text: str) -> str:
    """A contributor's word, so that it stays in its cell of a Markdown table and makes no link or element there."""
    return " ".join(re.sub(r"[|<>\[\]`]", "/", text).split())[:120]


def _table(head: tuple[str, str], lines: Sequence[tuple[str, str]]) -> str:
    cells = [f"| {_plain(name)} | {value} |" for name, value in (head, *lines)]
    return "\n".join([cells[0], "|---|--:|", *cells[1:]])
