"""The command, `python -m cdisc.main` or `cdisc`; `cdisc.app.cli` says what it takes."""

import signal


def main() -> None:
    """Runs the command and exits with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun, and Python's own answer is a traceback
    from cdisc import signals

    signals.install()  # before the imports, which take a while
    from cdisc.app import cli

    cli.run()


if __name__ == "__main__":
    main()
