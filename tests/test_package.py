"""The package keeps its promises: a light import, a one-way house, and a documented surface."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import alignjax

PACKAGE = Path(alignjax.__file__).parent

# module -> the modules of alignjax it may import. A package stands for all that is in it, and may
# import from itself, unless a longer name has its own line.
BELOW_PROBLEMS = {"linalg", "losses"}
BELOW_ENGINES = BELOW_PROBLEMS | {"problems", "structures"}
MAY_IMPORT = {
    "_programs": set(),
    "_validation": set(),
    "_roundoff": set(),
    "_meshes": set(),
    "linalg": set(),
    "losses": {"linalg"},
    "problems": BELOW_PROBLEMS,
    "structures": {"linalg"},
    "trajectory": {"linalg"},
    "moments": {"linalg"},
    "bases": BELOW_PROBLEMS | {"problems"},
    "initializers": BELOW_PROBLEMS | {"problems", "bases"},
    "metrics": {"linalg", "problems"},
    "engines": BELOW_ENGINES,
    # The loop that counts and freezes and the kernel of the recursion know nothing of networks: the
    # oracle may stand on them.
    "engines.loop": set(),
    "engines.library": set(),
    "engines.recursion": {"linalg", "engines.library"},
    "optimizers": set(),
    "descent": BELOW_ENGINES | {"engines", "engines.loop", "optimizers", "trajectory", "_programs"},
    "adaptive": BELOW_PROBLEMS | {"problems", "engines.loop", "trajectory", "_programs"},
    "flow": BELOW_PROBLEMS | {"problems", "trajectory", "_programs"},
    # The independent oracle: never descent, flow or an engine's gradients.
    "reduced": BELOW_PROBLEMS
    | {"problems", "bases", "trajectory", "engines.loop", "engines.recursion"},
    "closed_forms": BELOW_PROBLEMS | {"problems", "bases"},
    "theory": BELOW_ENGINES | {"bases", "metrics", "reduced", "closed_forms"},
    "sweeps": set(),
    "datasets": set(),
}
ALONE = {"sweeps", "datasets"}
ANYTHING = {"", "cli"}  # the public surface and the command line, by their first name
NEVER = {"experiments", "tests", "benchmarks"}


def module_names() -> dict[str, Path]:
    """Every module below alignjax, without the leading `alignjax.`; the package itself is ''."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = module_names()


def imports(source: str, module: str, *, is_package: bool) -> set[str]:
    """Full names of all that a module's source imports, relative and local imports too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = f"alignjax.{module}".rstrip(".").split(".")
                here = here[: len(here) - node.level + is_package]
                base = ".".join([*here, *filter(None, [base])])
            # `from package import name` may name a module or something inside the package.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full.removeprefix("alignjax.") in MODULES and full != "alignjax."
                found.add(full if is_module else base)
    return found


def rule_of(module: str) -> str | None:
    """The most specific line of the table for a module; None if it has none."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in MAY_IMPORT:
            return name
    return None


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What a module imports against the rules."""
    bad = []
    for name in sorted(imports(source, module, is_package=is_package)):
        top, _, target = name.partition(".")
        if top in NEVER:
            bad.append(f"{module or 'alignjax'} imports {name}: the package never looks back")
        if top != "alignjax" or module.split(".")[0] in ANYTHING:
            continue
        rule = rule_of(module)
        allowed = {rule} | MAY_IMPORT[rule]
        if rule not in ALONE:
            allowed |= {"_validation", "_roundoff", "_meshes"}
        # A package gathers its modules, those with a line of their own too.
        own = rule.split(".")[0]
        inside = module.split(".")[0] == own and rule == own and target.split(".")[0] == own
        if not inside and rule_of(target) not in allowed:
            bad.append(f"{module} imports {name}, which is not in its line of MAY_IMPORT")
    return bad


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_rule_and_keeps_it(module):
    if module.split(".")[0] not in ANYTHING:
        assert rule_of(module), f"{module} is new: give it a line in MAY_IMPORT"
    path = MODULES[module]
    assert not violations(
        path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py"
    )


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reduced", "from alignjax.descent import gradient_descent"),
        ("reduced", "import alignjax.engines.xla"),
        ("reduced", "from alignjax import flow"),
        ("reduced", "from . import descent"),
        ("reduced", "def f():\n    from .descent import gradient_descent"),
        ("closed_forms", "import alignjax as aj"),
        ("closed_forms", "from alignjax import gradient_descent"),
        ("theory.alignment", "from ..descent import gradient_descent"),
        ("initializers", "from alignjax.theory.alignment import certify"),
        ("engines.loop", "from alignjax.problems import gradient"),
        ("engines.loop", "from alignjax.engines.xla import advance"),
        ("linalg", "from alignjax import losses"),
        ("datasets.mnist", "from alignjax._validation import check"),
        ("sweeps", "from alignjax import datasets"),
        ("sweeps", "from alignjax.cli import errors"),
        ("cli", "import experiments"),
        ("metrics", "from tests.conftest import data_dir"),
    ],
)
def test_the_checker_sees_a_forbidden_import(module, source, monkeypatch):
    for name in ("descent", "flow", "losses", "datasets"):
        monkeypatch.setitem(MODULES, name, Path())
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("reduced", "from alignjax.engines import loop"),
        ("reduced", "from alignjax.engines.loop import advance"),
        ("engines", "from alignjax.engines import loop"),
        ("engines.xla", "from .loop import advance"),
        ("theory.alignment", "from alignjax.bases import Certificate"),
        ("metrics", "from alignjax._validation import check\nimport numpy as np"),
        ("datasets.mnist", "from alignjax.datasets.files import obtain"),
        ("cli", "import alignjax as aj"),
        ("cli.runs", "from alignjax.sweeps import forecast"),
    ],
)
def test_the_checker_lets_an_allowed_import_pass(module, source, monkeypatch):
    monkeypatch.setitem(MODULES, "engines.loop", Path())
    assert not violations(source, module)


def test_importing_changes_no_setting_starts_no_backend_and_loads_nothing_heavy():
    program = """
        import json, sys
        import jax
        settings = dict(jax.config.values)
        before = set(sys.modules)
        import alignjax
        from jax._src import xla_bridge
        print(json.dumps({
            "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
            "changed": sorted(k for k, v in jax.config.values.items() if settings.get(k, v) != v),
            "backends": sorted(xla_bridge._backends),
        }))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    seen = json.loads(run.stdout)
    heavy = {
        "diffrax",
        "equinox",
        "matplotlib",
        "pandas",
        "pooch",
        "rich",
        "sklearn",
        "torch",
        "typer",
        "xarray",
        "zarr",
    }
    assert not heavy & set(seen["loaded"])
    # JAX itself loads scipy in some versions; what must not come is what alignjax adds.
    assert "scipy" not in seen["loaded"]
    assert seen["changed"] == []
    assert seen["backends"] == []


def public_modules() -> list[str]:
    """The package and its public modules, packages included."""
    walk = pkgutil.walk_packages([str(PACKAGE)], prefix="alignjax.")
    names = [info.name for info in walk]
    return ["alignjax", *(n for n in names if not any(p.startswith("_") for p in n.split(".")))]


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_resolves_and_is_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name}.{public} has no docstring"


def test_the_surface_is_sorted_out():
    assert len(set(alignjax.__all__)) == len(alignjax.__all__)
    assert not [name for name in alignjax.__all__ if name.startswith("_") and name != "__version__"]


def test_the_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("alignjax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("alignjax is not installed, only on the path")
    assert alignjax.__version__ == installed


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()
