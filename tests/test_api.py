"""The Python interface of the README, whichever of its names is used first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zoo

USES = (
    "print(pv.fingerprint(folder).model_id)",
    "pv.Index; print(pv.fingerprint(folder).model_id)",
    "from provindex.fingerprint import record; record.Fingerprint; print(pv.fingerprint(folder).model_id)",
    "from provindex import fingerprint; pv.compare; print(fingerprint(folder).model_id)",
    "print(pv.compare(folder, folder).relation and pv.fingerprint(folder).model_id)",
)


@pytest.mark.parametrize("use", USES)
def test_fingerprint_is_a_function_whatever_was_imported_before(use: str, tmp_path: Path) -> None:
    folder = zoo.write(zoo.llama(3), tmp_path / "small-llama")
    code = f"import provindex as pv; folder = {str(folder)!r}; {use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "small-llama"


def test_a_reference_that_is_no_path_is_looked_up_in_the_default_index() -> None:
    import provindex as pv

    assert pv.fingerprint("openai/whisper-base").model_id == "openai/whisper-base"
    pair = pv.compare("cnmoro/portuguese-multilingual-e5-small", "intfloat/multilingual-e5-small")
    assert (pair.verdict, pair.relation, pair.direction) == ("linked", "vocabulary", "descendant")
