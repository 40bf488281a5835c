"""Prints the path of the newest CPython on this machine, releases only."""

import os
import re
import subprocess
from pathlib import Path

folders = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
folders += sorted(pyenv.glob("versions/*/bin"))
ask = "import sys; v = sys.version_info; print(*v[:2], v.releaselevel, sys.executable)"
best: tuple[tuple[int, int], str] | None = None
for path in [p for folder in folders for p in folder.glob("python3.*")]:
    if not re.fullmatch(r"python3\.\d+", path.name):
        continue
    # A shim of a version manager is a file too, and may refuse to run.
    answer = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
    if answer.returncode:
        continue
    major, minor, level, executable = answer.stdout.split(maxsplit=3)
    version = int(major), int(minor)
    if level == "final" and (best is None or version > best[0]):
        best = version, executable.strip()
if best is None:
    raise SystemExit("no python3.* on PATH or among pyenv's versions")
print(best[1])
