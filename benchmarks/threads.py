"""Do threads of one process do as much as independent copies on as many cores?"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import Row, not_measured

__all__ = ["ONE", "TWO", "run", "serve"]

ONE = "alignjax: one process on two cores"
TWO = "alignjax: two processes on a core each"
STEPS = {4: 40_000, 9: 5000, 64: 100}
BATCH = 1024
WORKER = (sys.executable, "-m", "benchmarks.threads")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class _Worker:
    """A process that holds a compiled descent on its own cores and runs it when told."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, cores: set[int], width: int, batch: int, steps: int) -> _Worker:
        chosen = ",".join(map(str, sorted(cores)))
        command = [*WORKER, chosen, *map(str, (width, batch, steps))]
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))

    def ready(self) -> None:
        self._line()

    def run(self) -> float:
        """Seconds of one call."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark process ended with {self.process.wait()}")
        return line

    def stop(self) -> None:
        self.process.communicate()


def run(*, repeats: int, steps: Mapping[int, int] = STEPS, batch: int = BATCH) -> list[Row]:
    """The same networks by one process on two cores, and by two processes on one core each.

    Args:
        repeats: timed calls of each contender.
        steps: width k to steps in a call.
        batch: networks of one process; each of the two has half of them.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    rows: list[Row] = []
    for width, count in steps.items():
        case = f"k = {width}, d = 3"
        if len(cores) < 2:
            why = "not measured: needs two cores and a system that pins processes"
            rows += [
                not_measured("threads", case, name, runs=batch, why=why) for name in (ONE, TWO)
            ]
            continue
        rows += _case(case, cores[:2], width, count, batch, repeats)
    return rows


def _case(
    case: str, cores: list[int], width: int, steps: int, batch: int, repeats: int
) -> list[Row]:
    one = _Worker.start(set(cores), width, batch, steps)
    two = [_Worker.start({core}, width, batch // 2, steps) for core in cores]
    together: list[float] = []
    apart: list[float] = []
    try:
        for worker in (one, *two):
            worker.ready()
        with ThreadPoolExecutor(2) as pool:
            for _ in range(repeats):
                together.append(one.run())
                apart.append(max(pool.map(_Worker.run, two)))
    finally:
        for worker in (one, *two):
            worker.stop()
    rows: list[Row] = []
    for name, seconds in ((ONE, together), (TWO, apart)):
        median = statistics.median(seconds)
        rows.append(
            Row(
                "threads",
                case,
                name,
                batch,
                steps=steps,
                run_seconds=median,
                spread=max(seconds) / min(seconds),
                step_microseconds=1e6 * median / steps,
                ratio=median / statistics.median(together),
                note="" if name == ONE else "the slower of the two",
            )
        )
    return rows


def serve(cores: str, width: int, batch: int, steps: int) -> None:
    """Pin this process, compile, then run once for each line that comes."""
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    # the pool of threads is as large as the cores seen when the backend starts, which is below
    from benchmarks.engine import on_cpu, ours
    from benchmarks.peers.job import make_job
    from benchmarks.timing import timed

    with on_cpu():
        contender = ours(make_job(width, batch), steps)
        contender.call()
        print("ready", flush=True)
        for _ in sys.stdin:
            print(timed(contender.call)[1], flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
