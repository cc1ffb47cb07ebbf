"""Commands of other packages, found as backends are: through entry points, in the group `vaespec.commands`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Annotated

import typer

from vaespec.errors import VaespecError

GROUP = "vaespec.commands"


def add_extensions(app: typer.Typer) -> None:
    """Add them. An entry point names a function that is given the app; a broken one is told when it is asked for."""
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()(app)
        except Exception as error:  # a stranger's package raises anything
            owner = point.dist.name if point.dist else point.value
            app.command(point.name, hidden=True, context_settings={"ignore_unknown_options": True})(
                _broken(f"command {point.name!r} of {owner} cannot be loaded ({error!r}): repair or uninstall {owner}.")
            )


def _broken(why: str) -> Callable[..., None]:
    def command(arguments: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        raise VaespecError(why)

    return command
