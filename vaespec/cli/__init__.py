"""The command line: `commands/` has one file for each command, and this folder what several commands share.

Other packages add commands through entry points: see `vaespec.cli.app.add_extensions`.
"""


def main() -> None:
    """Runs the `vaespec` script.

    Exit codes: 0 success, 1 failure, 2 wrong usage, 128 + n if signal n ended it: 130 is Ctrl-C.
    """
    from vaespec.cli.process import exit_at_signals, running

    exit_at_signals()
    with running() as started:
        from vaespec.cli.app import app

        started()
        app()
