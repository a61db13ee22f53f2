"""The table of panels: all that a fingerprint keeps of a model, from the tables of signals and tests.

Columns of the dataset, their limits, extraction, rows and back follow from it. A new signal or test brings its own
panels; what belongs to none of them has a row here.
"""

from __future__ import annotations

import hashlib

from provindex.common.tables import Column, Panel
from provindex.evidence import token_rows
from provindex.evidence.table import TESTS
from provindex.signals.table import SIGNALS

PANELS: tuple[Panel, ...] = (
    *(panel for signal in SIGNALS for panel in signal.panels),
    *(panel for test in TESTS for panel in test.panels),
    token_rows.PANEL,
)

IDENTITY: tuple[Column, ...] = (
    Column("row_sha256", "string", "both", False, "sha256 over the content columns; joins models and panels"),
    Column("model_id", "string", "models", False, "Hub id, or the name of a file that has none"),
    Column("revision", "string", "models", False, "Hub commit that was read, if known", nullable=True),
    Column("variant", "string", "models", False, "the dress of these weights (int8-dequantized ...), or empty"),
    Column("family", "string", "models", False, "root model of the weight lineage", nullable=True),
    Column("license", "string", "models", False, "license tag of the model", nullable=True),
    Column("parents", "list<string>", "models", False, "claimed parents", 1 << 10),
    Column(
        "id_certainty",
        "string",
        "models",
        False,
        "certain, likely or none (no Hub id of its own); null if unsaid",
        nullable=True,
    ),
    Column("source", "string", "models", False, "where license, lineage and id come from", nullable=True),
    Column("fingerprint_version", "int", "models", True, "rows of different versions are not compared"),
    Column("mode", "string", "models", True, "exact, sampled, norms or imported"),
    Column(
        "content_sha256",
        "string",
        "models",
        True,
        "hash of the canonical weights, one for every layout and format; null in sampled mode",
        nullable=True,
    ),
    Column(
        "core_sha256",
        "string",
        "models",
        True,
        "the same without output matrix, pooler and classification heads",
        nullable=True,
    ),
    Column("architecture", "string", "models", True, "model type of the text tower"),
    Column("main_stack", "string", "models", True, "decoder or encoder: the stack that is the text tower"),
    Column("parameters", "int", "models", True, "elements of all weight tensors"),
    Column("hidden", "int", "models", True, "residual width of the text tower"),
    Column("layers", "int", "models", True, "layers of the text tower"),
    Column("vocabulary", "int", "models", True, "rows of the token embedding"),
    Column("precision", "string", "models", True, "narrowest of bf16, f16, f32 that holds most weights exactly"),
    Column("nonfinite", "int", "models", True, "NaN and infinite values found"),
    Column("absences", "string", "models", True, "why a signal or panel is missing: JSON, codes and figures by name"),
    Column("warnings", "string", "models", False, "what to know about this fingerprint: JSON, codes and figures"),
    Column("files", "string", "models", False, "files that were read: name, size, sha256; JSON"),
    Column("bytes_read", "int", "models", False, "bytes the fingerprint was made from"),
    Column("bytes_total", "int", "models", False, "bytes of all tensors"),
)

COLUMNS: tuple[Column, ...] = (*IDENTITY, *(column for panel in PANELS for column in panel.columns))
OPTIONAL = frozenset(column.name for panel in PANELS for column in panel.columns)  # a row may have none of them
LAYOUT = hashlib.sha256(repr([(column.name, column.type) for column in COLUMNS]).encode()).hexdigest()[:8]
NULLABLE = frozenset(column.name for column in COLUMNS if column.nullable)
LIMITS = {column.name: column.limit for column in COLUMNS if column.limit}
