"""Prints the lower bounds in pyproject.toml as a file of constraints for pip."""

import re
import tomllib
from pathlib import Path

pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
project = pyproject["project"]
extras = project["optional-dependencies"]
wanted = ["sweeps", "data", "cli", "experiments", "test"]
requirements = [*project["dependencies"], *(line for name in wanted for line in extras[name])]
bounds = {}
for requirement in requirements:
    if found := re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement):
        bounds[found[1]] = found[2]
    elif not requirement.startswith("alignjax["):
        raise SystemExit(f"pyproject.toml: {requirement!r} has no plain lower bound")
print("\n".join(f"{name}=={version}" for name, version in sorted(bounds.items())))
