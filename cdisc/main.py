"""The command: `python -m cdisc.main --config=configs/colormnist.py:small --workdir=DIR`.

It exits with 0 when all is done, with 2 and one sentence when the person can mend what is wrong or has stopped it with
Ctrl-C, with 143 when SIGTERM has (`cdisc.signals`), and with 75 when it is one of several processes and another one has
died (`cdisc.hosts`).
"""

import errno
import itertools
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime, signals
from cdisc.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, such as configs/colormnist.py:small.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all results go; a run that was stopped goes on from there.")
_STAGES = flags.DEFINE_list("stages", None, "Some of pretrain,discover,adapt,evaluate,report; all by default.")
_QUERY = flags.DEFINE_multi_string("query", [], "A picture of your own to compose; may be repeated.")
_EXPORT = flags.DEFINE_string("export", None, "A folder to write the backbone and what it learnt to, for diffusers.")
_PROFILE = flags.DEFINE_string("profile", None, "A folder for traces of a few steps of each stage that works.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what the configuration would cost; needs no --workdir.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, which JAX finds by itself.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
_CONNECT_SECONDS = flags.DEFINE_integer("connect_seconds", 300, "How long to wait for the other processes.")
_DEVICE_COUNT = flags.DEFINE_integer("device_count", 1, "How many devices a dry run reckons with.")


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_NETWORK = (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)


def main(argv: list[str]) -> int:
    """Runs the stages; returns the exit code."""
    code = _run(argv)
    if _several():
        from cdisc import hosts

        hosts.leave(code)
    return code


def _several() -> bool:
    return _DISTRIBUTED.value or _COORDINATOR.value is not None


def _run(argv: list[str]) -> int:
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is not an option: all of them begin with --.")
        if _CONFIG.value is None or (_WORKDIR.value is None and not _DRY_RUN.value):
            raise UserError("give --config=FILE and --workdir=DIR.")
        runtime.configure()
        if _DRY_RUN.value or _WORKDIR.value is None:
            from cdisc import cost

            console.say(cost.report(_CONFIG.value, _DEVICE_COUNT.value))
            return 0
        from cdisc import hosts, pipeline  # jax reads its environment when it is first used

        if not _several() and (_NUM_PROCESSES.value is not None or _PROCESS_ID.value is not None):
            raise UserError("--num_processes and --process_id say nothing without --coordinator=HOST:PORT: give it.")
        if _several():
            hosts.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CONNECT_SECONDS.value)
        if _STAGES.value == []:
            raise UserError("--stages names no stage: leave it out for all of them.")
        stages = pipeline.STAGES if _STAGES.value is None else _STAGES.value
        workdir, export_to, profile = (_folder(flag) for flag in (_WORKDIR, _EXPORT, _PROFILE))
        assert workdir is not None
        with hosts.patient():
            pipeline.run(_CONFIG.value, workdir, stages, _QUERY.value, export_to=export_to, profile=profile)
        signals.obey()  # the last moments count too: a script must not go on after a Ctrl-C
    except UserError as error:
        console.fail(str(error))
        return 2
    except OSError as error:
        if error.errno not in _STORAGE + _NETWORK and not _lost(error):
            raise
        console.fail(
            f"{error}: make room, bring the folder back or choose another --workdir, then run again; what was finished "
            "there is kept."
        )
        return 2
    except signals.Stopped as stopped:
        console.fail(str(stopped))
        return stopped.code
    return 0


def _folder(flag: flags.FlagHolder[str | None]) -> pathlib.Path | None:
    if flag.value is None:
        return None
    if "://" in flag.value:
        raise UserError(
            f"--{flag.name} is {flag.value!r}, and only folders can be written: mount the bucket as one, or copy the "
            "results there when the run is done."
        )
    return pathlib.Path(flag.value).expanduser()  # no shell does so after a "="


def _lost(error: OSError) -> bool:
    """Whether the workdir lacks a file, as when it is removed while it is used; elsewhere that is a mistake in code."""
    workdir = _folder(_WORKDIR)
    if error.errno != errno.ENOENT or not isinstance(error.filename, str) or workdir is None:
        return False
    return pathlib.Path(error.filename).absolute().is_relative_to(workdir.absolute())


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, with a sentence instead of a traceback for what cannot be parsed."""
    for argument, following in itertools.pairwise([*argv, ""]):
        name, _, value = argument.partition("=")
        file = (value if value else following).partition(":")[0]
        if name in ("--config", "-config") and not pathlib.Path(file).is_file():
            console.fail(f"there is no config file {file!r}: give one such as configs/colormnist.py:small.")
            sys.exit(2)
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections wraps its KeyError, whose text would be quoted, in an AttributeError.
        inner = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        console.fail(f"the configuration has no field {' '.join(str(inner).split())}")
    except (flags.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        # Where the config file raised, the message is a traceback, whose last line is the sentence.
        lines = str(error).strip().splitlines() if "Traceback" in str(error) else [" ".join(str(error).split())]
        console.fail(lines[-1].removeprefix("ValueError: "))
    sys.exit(2)


if __name__ == "__main__":
    signals.install()
    app.run(main, flags_parser=_parse)
