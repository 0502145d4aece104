"""The command, `python -m cdisc.main`; `cdisc.app.cli` says what it takes."""

from cdisc import signals

if __name__ == "__main__":
    signals.install()  # before the imports, which take a while and would answer Ctrl-C with a traceback
    from cdisc.app import cli

    cli.run()
