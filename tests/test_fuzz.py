"""Every parser of untrusted bytes, on the corpus and a few hundred mutated inputs; and the fuzzer, on planted bugs."""

from __future__ import annotations

import pytest
from fuzz.guard import tried
from fuzz.planted import PLANTED
from fuzz.run import Finding, fuzz
from fuzz.seeds import kept
from fuzz.targets import TARGETS
from fuzz.worker import input_of

INPUTS = 150  # of a target
REFUSED = {"file_names"}  # names of folders that have nothing to read are seeds too


# --- the fuzzer ---


SAID = {
    "raise": "KeyError at planted.py:_raise", "loop": "more than 0.2 seconds", "allocate": "32 MB are the most",
    "allocate all": "MemoryError", "die": "died with status -6", "show": "a refusal ",
}  # fmt: skip


def test_planted_bugs_are_found() -> None:
    """Errors, endless loops, memory, a dead process, refusals that a terminal would take for commands."""
    tried_all = fuzz(list(PLANTED), seconds=60, most=8, jobs=2, registry="fuzz.planted:PLANTED")
    found = {ran.target: ran for ran in tried_all}
    assert not found.pop("say").findings
    for name, ran in found.items():
        assert ran.inputs >= 8 and ran.findings, name
        assert all(SAID[name] in finding.what for finding in ran.findings), ran.findings
        assert all(finding.data == input_of(PLANTED[name], finding.number) for finding in ran.findings)
    assert len({finding.number for finding in found["die"].findings}) == len(found["die"].findings) > 1


# --- the parsers ---


def _told(findings: list[Finding]) -> str:
    return "\n".join(f"{f.target} {f.number}: {f.what}" for f in findings)


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.native])
def test_mutated_inputs_are_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    made = [(n - len(target.all_seeds), data) for n, data in enumerate(target.all_seeds)]
    made += [(number, input_of(target, number)) for number in range(INPUTS)]
    found = [Finding(name, number, what, data) for number, data in made if (what := tried(target, data)) is not None]
    assert not found, _told(found)


def test_mutated_inputs_of_native_readers_end_no_process() -> None:
    names = [name for name, target in TARGETS.items() if target.native]
    found = [finding for ran in fuzz(names, seconds=60, most=INPUTS // 5, jobs=2) for finding in ran.findings]
    assert not found, _told(found)


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in REFUSED])
def test_seeds_are_read(name: str) -> None:
    """Mutations of files that are refused anyway would test nothing."""
    corpus = kept(name)
    for data in TARGETS[name].seeds():
        if data not in corpus:
            TARGETS[name].run(data)
