"""The command, `python -m cdisc.main`; `cdisc.app.cli` says what it takes."""

from cdisc.app import cli

if __name__ == "__main__":
    cli.run()
