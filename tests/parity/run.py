"""Run the peer and provindex on the same models and print how far apart they are. One command; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from provindex.report.words import joined

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

SIGNALS = ("EAS", "NLF", "LEP", "END", "WVC")
TOLERANCE = 1e-4
PACKAGES = (
    "torch==2.13.0",
    "transformers==5.5.0",
    "huggingface-hub==1.9.2",
    "tokenizers==0.22.2",
    "safetensors==0.7.0",
    "pydantic==2.12.5",
    *("pydantic-settings", "structlog", "pandas", "pyarrow", "rich", "sentencepiece", "protobuf", "tiktoken"),
)
PEER = ("--no-deps", "--ignore-requires-python", "cisco-ai-provenance-kit==1.0.0")
PEER_NAN = "NaN: the peer's clamp turns it into 1.0 (or it hides in a mean), provindex reports the signal absent"
PEER_ROUTES = "routes: the peer's own two routes disagree"


@dataclass(frozen=True)
class Difference:
    """A pair on which the two sides are further apart than TOLERANCE, and why (None: no explanation was
    found).
    """

    signal: str
    a: str
    b: str
    peer: float | None
    ours: float | None
    why: str | None


def main() -> int:
    """Returns 1 if a difference has no explanation."""
    options = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        python = peer_python(options)
        job = plan(options, python, work)
        peer = run_peer(python, job, work, again=not options.keep)
        differences = report(job, peer, formulas_only=options.formulas_only)
        if options.json:
            options.json.write_text(json.dumps([asdict(d) for d in differences], indent=1) + "\n")
        context = report_context(python, job, work, again=not options.keep)
        return 1 if context or any(d.why is None for d in differences) else 0


def parse() -> argparse.Namespace:
    """Command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "provindex-parity"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", type=Path, default=cache / "env", help="where the peer's environment is made")
    parser.add_argument("--reuse-env", type=Path, help="use this environment as it is")
    parser.add_argument("--models", type=Path, action="append", default=[], help="a folder of model folders")
    parser.add_argument("--no-generated", action="store_true", help="leave the generated models out")
    parser.add_argument("--formulas-only", action="store_true", help="check the arithmetic only, not pv.compare")
    parser.add_argument("--work", type=Path, help="keep generated models and the peer's answers here")
    parser.add_argument("--keep", action="store_true", help="with --work: take the peer's answers from there")
    parser.add_argument("--json", type=Path, help="also write the differences here")
    return parser.parse_args()


# ---- the peer


def peer_python(options: argparse.Namespace) -> Path:
    """The interpreter of the peer's environment, which is made if it is not there."""
    env = options.reuse_env or options.env
    python = Path(env) / "bin" / "python"
    if not options.reuse_env and not (env / "complete").exists():
        print(f"making {env} (torch and transformers: a few minutes)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
        for packages in (PACKAGES, PEER):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (env / "complete").touch()
    missing = subprocess.run(
        [str(python), "-c", "import provenancekit.core.scanner"], capture_output=True, text=True, check=False
    )
    if missing.returncode:
        sys.exit(f"{env} cannot run the peer: {missing.stderr.strip().splitlines()[-1]}. Leave --reuse-env out.")
    return python


def plan(options: argparse.Namespace, python: Path, work: Path) -> dict[str, Any]:
    """Folders by name, and all pairs inside each group (a model with itself included)."""
    groups = list(options.models)
    if not options.no_generated:
        if not (work / "generated").exists():
            subprocess.run([str(python), str(HERE / "generate.py"), str(work / "generated")], check=True)
        groups.append(work / "generated")
    job: dict[str, Any] = {"models": {}, "pairs": []}
    for group in groups:
        folders = sorted(path for path in group.iterdir() if (path / "config.json").exists())
        job["models"] |= {path.name: str(path.resolve()) for path in folders}
        job["pairs"] += combinations_with_replacement([path.name for path in folders], 2)
    if not job["models"]:
        sys.exit("No models: give --models FOLDER, or leave --no-generated out.")
    return job


def run_peer(python: Path, job: dict[str, Any], work: Path, *, again: bool) -> dict[str, Any]:
    """The peer's numbers, from weights.py in its own environment."""
    out = work / "peer_weights.json"
    if again or not out.exists():
        (work / "job.json").write_text(json.dumps(job))
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        command = [str(python), str(HERE / "weights.py"), str(work / "job.json"), str(out)]
        subprocess.run(command, check=True, env=environment)
    answers: dict[str, Any] = json.loads(out.read_text())
    return answers


def report_context(python: Path, job: dict[str, Any], work: Path, *, again: bool) -> int:
    """MFI, TFV, VOA and the anchors, by context.py in both environments; the number of unexplained differences."""
    import context

    folders = [Path(folder) for folder in job["models"].values()]
    out = work / "peer_context.json"
    if again or not out.exists():
        command = [str(python), str(HERE / "context.py"), "dump", str(out), *map(str, folders)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # the peer logs to standard output
    found = context.differences(json.loads(out.read_text()), folders)
    print("\ncontext: MFI, TFV, VOA and the anchors of EAS")
    print("\n".join(found.lines()))
    return len(found.unexplained)


# ---- provindex


def report(job: dict[str, Any], peer: dict[str, Any], *, formulas_only: bool) -> list[Difference]:
    """Compare, print, and return every difference above TOLERANCE."""
    import rules

    for name, facts in peer["models"].items():
        if "error" in facts:
            print(f"left out: {name}, refused by the peer ({facts['error'][:120]})")
    ours = {} if formulas_only else fingerprints(job, peer)
    readings = {
        name: rules.read(Path(job["models"][name]), facts["anchors"], facts["embedding"], kept_names(ours.get(name)))
        for name, facts in peer["models"].items()
        if "error" not in facts
    }
    print("\nformulas: provindex's arithmetic on the tensors, order and anchors that the peer takes")
    differences = list(formula_differences(peer["pairs"], readings))
    table(peer["pairs"], differences)
    if not formulas_only:
        print("\nprovindex: what provindex.compare answers")
        scores = compare_all(peer["pairs"], ours)
        found = list(product_differences(peer["pairs"], scores, readings))
        table(peer["pairs"], found, scores)
        differences += found
        speed(peer["models"], ours, job["models"])
    listing(differences)
    return [d for d in dict.fromkeys(differences) if not (d.why or "").startswith("same")]


def kept_names(ours: tuple[Any, float] | None) -> frozenset[str]:
    """Names of the projections in a fingerprint."""
    return frozenset(ours[0].wvc.names) if ours and ours[0].wvc is not None else frozenset()


def fingerprints(job: dict[str, Any], peer: dict[str, Any]) -> dict[str, tuple[Any, float]]:
    """(fingerprint, seconds) of every model that the peer reads; its files are in the page cache by then, as
    for the peer.
    """
    from provindex.fingerprint.extract.model import fingerprint_model
    from provindex.models.source import open_model

    made = {}
    for name in (n for n, facts in peer["models"].items() if "error" not in facts):
        for file in Path(job["models"][name]).glob("*.safetensors"):
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
        start = time.perf_counter()
        made[name] = (fingerprint_model(open_model(job["models"][name])), time.perf_counter() - start)
    return made


def compare_all(pairs: Sequence[dict[str, Any]], ours: dict[str, tuple[Any, float]]) -> dict[tuple[str, str], Any]:
    """provindex's signals by pair."""
    from provindex.verdict.pair import compare

    return {(p["a"], p["b"]): compare(ours[p["a"]][0], ours[p["b"]][0]).signals for p in pairs}


def close(a: float | None, b: float | None) -> bool:
    """Equal, both missing, or within TOLERANCE (and the rounding to 4 decimals)."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE + 1e-9


def formula_differences(pairs: Sequence[dict[str, Any]], readings: dict[str, Any]) -> Iterator[Difference]:
    """The peer's rules, provindex's arithmetic."""
    import rules

    for pair in pairs:
        for signal in SIGNALS:
            theirs = pair["full"][signal]
            score = rules.compare(signal, readings[pair["a"]], readings[pair["b"]], rules.Rules())
            if not close(theirs, score.value):
                why = PEER_NAN if "NaN" in joined(score.reasons) else None
                yield Difference(signal, pair["a"], pair["b"], theirs, score.value, why)
            elif theirs != score.value:
                yield Difference(signal, pair["a"], pair["b"], theirs, score.value, "same within the tolerance")


def product_differences(
    pairs: Sequence[dict[str, Any]], scores: dict[tuple[str, str], Any], readings: dict[str, Any]
) -> Iterator[Difference]:
    """provindex.compare against the peer, each difference with the rules that make it."""
    for pair in pairs:
        key = (pair["a"], pair["b"])
        for signal in SIGNALS:
            theirs, score = pair["full"][signal], scores[key][signal]
            if close(theirs, score.value):
                if theirs != score.value:
                    yield Difference(signal, *key, theirs, score.value, "same within the tolerance")
                continue
            why = explain(signal, score, readings[key[0]], readings[key[1]])
            if why is None and not close(theirs, pair["stream"][signal]):
                why = PEER_ROUTES
            yield Difference(signal, *key, theirs, score.value, why)


def explain(signal: str, score: Any, a: Any, b: Any) -> str | None:
    """The smallest set of changed rules that gives provindex's value."""
    import rules

    if score.value is None and "NaN" in joined(score.reasons):
        return PEER_NAN
    for choice in rules.Rules.subsets():
        if choice.changed and close(rules.compare(signal, a, b, choice).value, score.value):
            return "; ".join(rules.CHANGES[name] for name in rules.CHANGES if name in choice)
    return None


# ---- printing


def table(
    pairs: Sequence[dict[str, Any]],
    differences: Sequence[Difference],
    scores: dict[tuple[str, str], Any] | None = None,
) -> None:
    """Per signal: pairs compared, largest difference, and how many are above the tolerance."""
    heads = ("pairs", "absent", "largest", "> 1e-4", "unexplained", "routes differ")
    print(f"{'signal':<8}" + "".join(f"{head:>15}" for head in heads))
    for signal in SIGNALS:
        mine = [d for d in differences if d.signal == signal]
        above = [d for d in mine if not (d.why or "").startswith("same")]
        unexplained = [d for d in above if d.why is None]
        largest = max((abs(d.peer - d.ours) for d in mine if d.peer is not None and d.ours is not None), default=0.0)
        changed = {(d.a, d.b) for d in mine}
        absent = sum(p["full"][signal] is None and (p["a"], p["b"]) not in changed for p in pairs)
        routes = sum(not close(p["full"][signal], p["stream"][signal]) for p in pairs)
        cells = (len(pairs), absent, f"{largest:.4f}", len(above), len(unexplained), routes)
        print(f"{signal:<8}" + "".join(f"{cell:>15}" for cell in cells))


def listing(differences: Sequence[Difference]) -> None:
    """Every difference above the tolerance, under its explanation."""
    above = [d for d in dict.fromkeys(differences) if not (d.why or "").startswith("same")]
    for why in sorted({d.why for d in above}, key=lambda text: (text is not None, text)):
        print(f"\n{why or 'NO EXPLANATION'}")
        for d in (d for d in above if d.why == why):
            print(f"  {d.signal:<5}{d.a:<26}{d.b:<26}peer {shown(d.peer)}  provindex {shown(d.ours)}")


def shown(value: float | None) -> str:
    """A number of 4 decimals, or a dash."""
    return "     -" if value is None else f"{value:.4f}"


def speed(models: dict[str, Any], ours: dict[str, tuple[Any, float]], folders: dict[str, str]) -> None:
    """Seconds per model; files in the page cache, one BLAS thread, imports not counted."""
    heads = ("MB", "peer context", "peer weights", "peer both", "peer stream", "provindex")
    print(f"\n{'seconds':<28}" + "".join(f"{head:>14}" for head in heads))
    for name, (_, seconds) in ours.items():
        facts = models[name]
        size = sum(f.stat().st_size for f in Path(folders[name]).glob("*.safetensors")) / 1e6
        context, weights = facts["seconds_context"], facts["seconds_weights"]
        cells = (size, context, weights, context + weights, facts["seconds_stream"], seconds)
        print(f"{name:<28}" + "".join(f"{cell:>14.2f}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
