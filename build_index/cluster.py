"""A step for datatrove, whose executors run it on one machine, on SLURM or on Ray: each task makes one part.

Needs the extra `provindex[cluster]`. Nothing else in this folder imports this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from build_index import parts
from build_index.fill import Share
from build_index.lists import read_lists

try:
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
except ImportError as error:
    raise ImportError("build_index.cluster needs datatrove: pip install 'provindex[cluster]'.") from error


class BuildPart(PipelineStep):  # type: ignore[misc,unused-ignore]  # without datatrove its base is unknown
    """Make the part of a task's rank, as `python -m build_index build --rank R --world-size W` does.

    sources: what `build` takes; the same lists and folders must be there on every machine. output: the folder of all
    parts, which every machine can write to. processes: models at a time in one task. mode, offline, max_mb: as for
    `build`; max_mb is the budget of one task.

    A model that fails is logged and listed in its part, and the task goes on; datatrove then counts the task as
    completed. The task itself fails only if the part cannot be made at all.
    """

    name = "build part"
    type = "provindex"

    def __init__(
        self,
        sources: str | Sequence[str],
        output: str | Path,
        *,
        mode: str | None = None,
        offline: bool = False,
        processes: int = 1,
        max_mb: float | None = None,
    ) -> None:
        super().__init__()
        self.sources = [sources] if isinstance(sources, str) else list(sources)
        self.output = str(output)
        self.mode = mode
        self.offline = offline
        self.processes = processes
        self.max_mb = max_mb

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Hand on the documents of earlier steps, if there are any, then make the part.

        Raises ProvindexError where the command would end with status 2.
        """
        yield from data or ()
        sources, facts = read_lists(self.sources)
        with self.track_time(unit="part"):
            done = parts.build(
                Path(self.output), sources, Share(rank, world_size), facts=facts, processes=self.processes,
                mode=self.mode, offline=self.offline, max_mb=self.max_mb, report=logger.info,
            )  # fmt: skip
        for source, reason in sorted(done.failed.items()):
            logger.warning(f"failed   {source}: {reason}")
        for label in ("added", "present", "failed", "missing"):
            self.stat_update(label, value=len(getattr(done, label)), unit="part")
