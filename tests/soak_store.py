"""Kills a sweep at random moments, again and again, and compares what it finishes.

``python -m tests.soak_store [--kills 50] [--seed 0] [--width 20000]`` prints a line for each kill
and a summary, and fails on the first finished block that is lost or finished store that differs
from the undisturbed one. The tests do the same with few kills.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Outcome:
    """What a series of kills came to."""

    kills: Counter = field(default_factory=Counter)
    stores_compared: int = 0


def start(store, width):
    """The sweep in a process of its own, running when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sweep_to_kill", str(store), "--width", str(width)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(process.communicate()[1])
    return process


def ended(process, seconds=None):
    """Whether the sweep ends by itself, in that time if one is given.

    Raises:
        RuntimeError: it failed.
    """
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    if process.returncode:
        raise RuntimeError(errors)
    return True


def killed(process, store, rng, duration):
    """Whether SIGKILL, at a random moment, came before the sweep was finished.

    One kill in four is at any moment of the sweep. As most of it may be compiling, the others wait
    for a number of blocks, and then for a part of the time that a block takes.
    """
    if rng.random() < 0.25:
        done = ended(process, rng.uniform(0, duration))
    else:
        goal = count(store) + rng.randint(1, 30)
        while count(store) < goal and process.poll() is None:
            time.sleep(0.001)
        done = ended(process, rng.uniform(0.0001, 0.03))
    if not done:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def count(store):
    """How many blocks have a record."""
    return len(list((store / "complete" / "records").glob("*.json")))


def contents(store):
    """Every file of a store with its bytes."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


def finished(files):
    """The records that tell the truth about their blocks' files; checked without the library."""
    return {
        name: data
        for name, data in files.items()
        if name.startswith("complete/records/") and name.endswith(".json")
        if all(
            hashlib.blake2b(files[chunk], digest_size=16).hexdigest() == checksum
            for chunk, checksum in json.loads(data)["checksums"].items()
        )
    }


def moment(store, files, records):
    """What the process was doing when it was killed, by what it left."""
    if any(store.parent.glob(f".{store.name}.creating-*")):
        return "creating the store"
    if not files:
        return "before there was a store"
    recorded = {chunk for data in records.values() for chunk in json.loads(data)["checksums"]}
    chunks = {name for name in files if "/c." in name and name.split("/")[0] in OUTPUTS}
    if any(name.endswith(".partial") for name in files):
        return "in the middle of a file"
    return "in the middle of a block" if chunks - recorded else "between two blocks"


OUTPUTS = ("risk", "weights", "diverged", "complete")


def soak(folder, kills, seed=0, width=64, tell=lambda line: None):
    """Kill sweeps until there were ``kills`` kills, finish each, and compare.

    The wider a run's output, the more of a sweep's time is writing.

    Raises:
        AssertionError: a finished block was lost or changed, or a finished store differs.
    """
    rng, outcome = random.Random(seed), Outcome()
    process, begin = start(folder / "undisturbed", width), time.monotonic()
    assert ended(process)
    duration = time.monotonic() - begin
    tell(f"undisturbed, without the start of Python: {duration:.1f} s")
    undisturbed = contents(folder / "undisturbed")

    while outcome.kills.total() < kills:
        store, before = folder / f"store-{outcome.stores_compared}", {}
        while True:
            process = start(store, width)
            if outcome.kills.total() == kills:
                was_killed = not ended(process)
            else:
                was_killed = killed(process, store, rng, duration)
            files = contents(store)
            records = finished(files)
            assert before.items() <= records.items(), "a finished block was lost"
            before = records
            if not was_killed:
                break
            when = moment(store, files, records)
            outcome.kills[when] += 1
            tell(f"kill {outcome.kills.total()}: {when}, {len(records)} blocks finished")
            for leftover in folder.glob(f".{store.name}.*"):
                leftover.rename(folder / f"leftover-{outcome.kills.total()}")
        assert files == undisturbed, "a finished store differs from the undisturbed one"
        outcome.stores_compared += 1
        tell(f"store {outcome.stores_compared} is the undisturbed one, bit for bit")
    return outcome


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=20_000)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(
            Path(folder),
            given.kills,
            given.seed,
            given.width,
            tell=lambda line: print(line, flush=True),
        )
    print(f"{outcome.kills.total()} kills, {outcome.stores_compared} stores compared")
    for when, count in outcome.kills.most_common():
        print(f"  {count:3d} {when}")


if __name__ == "__main__":
    main(sys.argv[1:])
