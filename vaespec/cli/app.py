"""The `vaespec` application: the commands of this package, and those that other packages add."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from vaespec.cli.commands.backends import backends
from vaespec.cli.commands.compare import compare
from vaespec.cli.commands.convert import convert
from vaespec.cli.commands.decode import decode
from vaespec.cli.commands.demo import demo
from vaespec.cli.commands.encode import encode
from vaespec.cli.commands.info import info
from vaespec.cli.commands.roundtrip import roundtrip
from vaespec.cli.failures import CommandGroup
from vaespec.cli.options import example
from vaespec.errors import VaespecError

GROUP = "vaespec.commands"  # the entry points of other packages; each names a function that is called with the app


def add_extensions(app: typer.Typer) -> None:
    """Adds the commands of other packages; a command that cannot be loaded raises only when it is used."""
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()(app)
        except Exception as error:  # code of another package may raise anything
            owner = point.dist.name if point.dist else point.value
            app.command(point.name, hidden=True, context_settings={"ignore_unknown_options": True})(
                _broken(f"command {point.name!r} of {owner} cannot be loaded ({error!r}): repair or uninstall {owner}.")
            )


def _broken(message: str) -> Callable[..., None]:
    def command(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        raise VaespecError(message)

    return command


app = typer.Typer(
    name="vaespec",
    cls=CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(epilog=example("vaespec demo"))(demo)
app.command(epilog=example("vaespec roundtrip holiday/*.jpg --output out"))(roundtrip)
app.command(epilog=example("vaespec encode holiday/*.jpg --pad edge --output holiday.safetensors"))(encode)
app.command(epilog=example("vaespec decode holiday.safetensors --output out"))(decode)
app.command(epilog=example("vaespec info sdxl_vae.safetensors --size 1024x768"))(info)
app.command(epilog=example("vaespec convert v1-5.ckpt my-vae --to diffusers --family sd1"))(convert)
app.command(epilog=example("vaespec compare holiday/beach.jpg --tiling"))(compare)
app.command(epilog=example("vaespec backends"))(backends)
add_extensions(app)


def _print_version(requested: bool) -> None:
    if requested:
        from vaespec import __version__

        print(f"vaespec {__version__}")
        raise typer.Exit


@app.callback(epilog=example("vaespec demo"))
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The image VAE of Stable Diffusion, SDXL, SD3 and FLUX, on NumPy, PyTorch, JAX or MLX."""
