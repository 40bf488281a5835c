"""The commands and their options. What they do is imported when they run: help is quick."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from alignjax.cli import errors
from alignjax.cli.console import show_error
from alignjax.cli.errors import CommandError, told

app = typer.Typer(
    help="Gradient dynamics of deep linear networks: certify data, simulate, sweep, plot.",
    epilog=errors.EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Kind(StrEnum):
    """What the files of ``certify`` state."""

    regression = "regression"
    autoencoding = "autoencoding"
    factorization = "factorization"
    inversion = "inversion"
    sensing = "sensing"


class Precision(StrEnum):
    """Of floats."""

    float32 = "float32"
    float64 = "float64"


Config = Annotated[Path, typer.Argument(help="A config; paths in it are relative to it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; null is infinite or NaN.")]
Dtype = Annotated[Precision | None, typer.Option(help="Instead of the config's or the files'.")]


def _version(given: bool) -> None:
    if given:
        from alignjax import __version__

        print(f"alignjax {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Gradient dynamics of deep linear networks: certify data, simulate, sweep, plot."""


@app.command()
def certify(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="X [Y]",
            help="Rows are samples: .csv, .npy or .npz (file.npz:array). X alone is autoencoding.",
        ),
    ],
    kind: Annotated[
        Kind | None, typer.Option(help="What the files state: X Y, X, M, M, matrices values.")
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=1, max=10_000, help="Layers; repeat for several. Default: 2, 3, 4."),
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0, help="Singular values of the aligned start of all layers.")
    ] = 1.0,
    rank: Annotated[
        int | None, typer.Option(min=1, help="The narrowest width, if below those of the data.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A start, .npz with W_1, ..., W_d, for --depth, --scale.")
    ] = None,
    tolerance_yes: Annotated[
        float | None, typer.Option(help="The largest residual called yes.")
    ] = None,
    tolerance_no: Annotated[
        float | None, typer.Option(help="The smallest residual called no.")
    ] = None,
    dtype: Dtype = None,
    out: Annotated[Path | None, typer.Option(help="Write U, V and the spectra, .npz.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether alignment stays invariant on data, and which learning rates are safe.

    Exit code 0: yes, 1: no, 2: cannot tell. A start whose layers are aligned with the data stays so
    if and only if the data have common bases: U'Syx V and V'Sxx V diagonal.
    """
    from alignjax.cli.certify import Request, certify_files

    request = Request(
        files=tuple(files),
        kind=None if kind is None else kind.value,
        depths=tuple(depth or (2, 3, 4)),
        scale=scale,
        rank=rank,
        weights=weights,
        tolerance_yes=tolerance_yes,
        tolerance_no=tolerance_no,
        dtype=None if dtype is None else dtype.value,
        out=out,
    )
    with _double_precision():
        raise typer.Exit(certify_files(request, as_json=as_json))


@app.command()
def simulate(
    config: Config,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One value, for an axis too; repeatable."),
    ] = None,
    dtype: Dtype = None,
    out: Annotated[
        Path | None, typer.Option(help="Write observations (.csv), or weights too (.npz).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train once as a config says, and show what was observed."""
    from alignjax.cli.runs import simulate_config

    with _double_precision():
        simulate_config(config, given or [], _value(dtype), out, as_json=as_json)


@app.command()
def sweep(
    config: Config,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue in a store that exists.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a sweep store that exists.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, memory and time; write nothing.")
    ] = False,
    store: Annotated[Path | None, typer.Option(help="Instead of the config's store.")] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="The most runs in a block, instead of the config's.")
    ] = None,
    dtype: Dtype = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train at every point of a config's axes; results go to its Zarr store."""
    from alignjax.cli.runs import SweepOptions, sweep_config

    options = SweepOptions(resume, overwrite, dry_run, store, chunk, _value(dtype), quiet, as_json)
    with _double_precision():
        sweep_config(config, options)


@app.command()
def plot(
    store: Annotated[Path, typer.Argument(help="The store of a sweep.")],
    variable: Annotated[
        str | None, typer.Option("--variable", "-v", help="What to draw; by default the risk.")
    ] = None,
    x: Annotated[str | None, typer.Option(help="The axis to the right.")] = None,
    y: Annotated[
        str | None, typer.Option(help="The axis upwards, of a map; 'none' draws lines.")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="DIM=VALUE", help="Keep the nearest value of a dimension."),
    ] = None,
    average: Annotated[str, typer.Option(help="Over seeds: median or mean.")] = "median",
    out: Annotated[
        Path | None, typer.Option(help="A .png, .pdf or .svg; by default STORE.png beside it.")
    ] = None,
) -> None:
    """Draw a sweep: a map where two axes have many values, else lines."""
    from alignjax.cli.plot import Wanted, plot_store

    plot_store(store, Wanted(variable, x, y, tuple(select or ()), average), out)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Show versions, devices and engines."""
    from alignjax.cli.info import show_info

    show_info(as_json=as_json)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and turn whatever ends it into an exit code."""
    # Typer carries its own copy of click in newer versions, and exports the subclass only.
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="alignjax",
            standalone_mode=False,
        )
    except CommandError as error:
        show_error(str(error))
        return error.code
    except usage_error as error:
        return _usage(error)
    except (typer.Abort, KeyboardInterrupt):
        show_error("interrupted")
        return errors.INTERRUPTED
    except ModuleNotFoundError as error:
        show_error(f"{error}; pip install 'alignjax[cli]' brings all that the commands need")
        return errors.MISSING_EXTRA
    except SystemExit as ending:
        # Typer ends so with 1, which is a verdict here, where whoever read our output has gone.
        return errors.CANNOT_WRITE if ending.code == 1 else int(ending.code or 0)
    except Exception:
        # Python's own exit code of an error is 1, which is a verdict here.
        traceback.print_exc()
        show_error("this is a fault of alignjax; please report what stands above")
        return errors.INTERNAL
    if code == errors.INTERRUPTED:  # newer versions of Typer say nothing
        show_error("interrupted")
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return errors.USAGE
    if context is not None:
        show_error(f"{error.format_message()}\n{context.get_usage()}")
    else:
        show_error(error.format_message())
    return errors.USAGE


def _value(dtype: Precision | None) -> str | None:
    return None if dtype is None else dtype.value


@contextmanager
def _double_precision() -> Any:
    """Let arrays be float64 while a command runs: its process is the application's own."""
    import jax

    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    except (ValueError, TypeError) as error:
        # The library refuses bad input by these, and says what is wrong.
        raise CommandError(told(error)) from error
    finally:
        jax.config.update("jax_enable_x64", before)
