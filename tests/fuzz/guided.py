"""The same targets under atheris, which keeps inputs that reach new code (`pip install atheris`; CPython up to 3.13).

    python tests/fuzz/guided.py TARGET FOLDER -max_total_time=600

FOLDER keeps what it finds; the other options are libFuzzer's.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["provindex"]):
    from fuzz.guard import tried
    from fuzz.mutate import mutated
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz one target until libFuzzer ends it or an input is a finding."""
    target, folder = TARGETS[sys.argv[1]], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.all_seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        what = tried(target, data)
        if what is not None:
            raise AssertionError(what)

    def other(data: bytes, most: int, seed: int) -> bytes:
        """Half of the time our mutations, which know the formats, else libFuzzer's."""
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return target.mend(mutated((data, *target.all_seeds[:1]), seed))[:most]

    atheris.Setup([sys.argv[0], str(folder), *sys.argv[3:]], one, custom_mutator=other)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
