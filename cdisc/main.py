"""The command, `python -m cdisc.main` or `cdisc`; `cdisc.app.cli` says what it takes."""

from cdisc import signals


def main() -> None:
    """Runs the command and exits with its code."""
    signals.install()  # before the imports, which take a while and would answer Ctrl-C with a traceback
    from cdisc.app import cli

    cli.run()


if __name__ == "__main__":
    main()
