"""The command line: one file per command of `vaespec demo | roundtrip | encode | decode | info | convert | …`.

Other packages add theirs: see `vaespec.cli.extensions`.
"""


def main() -> None:
    """What the `vaespec` script calls. Exit codes: 0 done, 1 failed, 2 wrongly asked, 130 interrupted."""
    from vaespec.cli.app import app

    app()
