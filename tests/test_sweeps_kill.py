"""A sweep that is killed, starved of disk, or loses a process, finishes as if nothing had been."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.soak_store import ROOT, contents, ended, finished, soak, start

pytest.importorskip("zarr")
pytest.importorskip("xarray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL"),
]

BLOCKS = 92
WIDTH = 2_000


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The files of a store that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    assert ended(start(store, WIDTH))
    files = contents(store)
    assert len(finished(files)) == BLOCKS
    return files


def finish(store):
    """Run the same sweep again; the files it leaves."""
    assert ended(start(store, WIDTH))
    return contents(store)


def test_sweeps_killed_at_random_moments_finish_bit_for_bit(tmp_path):
    outcome = soak(tmp_path, kills=5)
    assert outcome.kills.total() == 5
    assert outcome.stores_compared >= 1


def sweep_under(prefix, store):
    """The sweep under another command; its exit code and what it complained of."""
    run = subprocess.run(
        [*prefix, sys.executable, "-m", "tests.sweep_to_kill", str(store), "--width", str(WIDTH)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stderr


def test_a_full_disk_is_told_and_the_finished_blocks_are_intact(tmp_path, undisturbed):
    small = tmp_path / "small"
    small.mkdir()
    # A file system in memory of its own, that needs no privilege and goes with the process; what
    # it holds is copied out before.
    mount = 'mount -t tmpfs -o size=1500k tmpfs "$0" || exit 99'
    keep = '"$@"; code=$?; cp -R "$0/store" "$0.copy" && exit $code'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        allowed = subprocess.run([*inside, mount, str(small)], check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs unshare, and a kernel that lets a user mount a file system")
    code, errors = sweep_under([*inside, f"{mount}; {keep}", str(small)], small / "store")
    assert code == 1
    assert "No space left on device: block" in errors.splitlines()[-1]
    assert "finished blocks are intact" in errors
    assert str(small / "store") in errors
    files = contents(tmp_path / "small.copy")
    records = finished(files)
    assert 0 < len(records) < BLOCKS
    assert {name: undisturbed.get(name) for name in files} == files
    assert finish(tmp_path / "small.copy") == undisturbed


def test_a_limit_on_the_size_of_files_is_told_and_lifted(tmp_path, undisturbed):
    pytest.importorskip("resource")
    # The child limits itself: a function between fork and exec would fork a process with threads.
    limited = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    code, errors = sweep_under([sys.executable, "-c", limited], tmp_path / "store")
    assert code == 1
    assert "File too large: block" in errors.splitlines()[-1]
    assert "finished blocks are intact" in errors
    assert finish(tmp_path / "store") == undisturbed


def test_a_folder_without_permission_is_told(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    prefix = []
    if os.geteuid() == 0:
        # Root may write anywhere, unless it gives that up.
        rights = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
        if shutil.which("setpriv") is None:
            pytest.skip("this user may write anywhere, and there is no setpriv")
    code, errors = sweep_under(prefix, closed / "store")
    assert code == 1
    assert "Permission denied: the sweep store could not be created" in errors
    assert str(closed) in errors


def test_processes_that_do_not_know_of_each_other_share_a_store(tmp_path, undisturbed):
    store = tmp_path / "store"
    both = [start(store, WIDTH) for _ in range(2)]
    assert [ended(process) for process in both] == [True, True]
    assert contents(store) == undisturbed


@contextlib.contextmanager
def three_processes(store):
    """The sweep, shared by processes that find each other on this machine; none survives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.sweep_to_kill", str(store), "--width", str(WIDTH)]
    shared = ["--processes", "3", "--port", str(port)]
    processes = [
        subprocess.Popen(
            [*command, *shared, "--process", str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_three_processes_of_which_one_is_killed_finish_when_started_again(tmp_path, undisturbed):
    store = tmp_path / "store"
    # Blocks are shared out in their order: process 1 has every third, from the second on.
    blocks = itertools.product(range(2), range(23), range(2))
    names = [f"complete/records/block-{i}-{j}-{k}.json" for i, j, k in blocks]
    own, of_others = names[1::3], {*names[0::3], *names[2::3]}
    deadline = time.monotonic() + 120

    def wait_for(found, alive):
        while not found():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in alive)
            time.sleep(0.005)

    with three_processes(store) as (first, second, third):
        wait_for(lambda: any((store / name).exists() for name in own), [first, second, third])
        second.kill()
        # The others finish their blocks and wait for the dead one; a cluster then ends the job.
        wait_for(lambda: all((store / name).exists() for name in of_others), [first, third])
    before = finished(contents(store))
    assert of_others < set(before) < set(names)
    with three_processes(store) as processes:
        assert all(ended(process, 120) for process in processes)
    after = contents(store)
    assert before.items() <= after.items()
    assert after == undisturbed
