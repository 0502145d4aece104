"""Discovers the concepts of pictures, composes and learns what they teach, and shows how good that is.

    python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/digits
    python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/mine --query=PICTURE
    python -m cdisc.main --config=configs/avatars.py:large --config.pretrain.batch_size=64 --dry_run

--config.FIELD=VALUE changes any field of the configuration, whose file says what each of them is for.

It exits with 0 when all is done, with 2 and one sentence when the user can fix what is wrong or has stopped it with
Ctrl-C, with 143 when SIGTERM has (`cdisc.signals`), and with 75 when it is one of several processes and another one has
died (`cdisc.app.hosts`).
"""

import itertools
import os
import pathlib
import re
import sys
import traceback

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


def main(argv: list[str]) -> int:
    """Runs the stages; returns the exit code."""
    try:
        code = _run(argv)
    except Exception:
        if not _several():
            raise
        traceback.print_exc()
        code = 1
    if _several():
        from cdisc.app import hosts

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
        if _DRY_RUN.value:
            from cdisc.app import cost

            console.say(cost.report(_CONFIG.value, _DEVICE_COUNT.value))
            return 0
        import jax  # which reads its environment when it is first used

        from cdisc.app import hosts, pipeline

        if not _several() and (_NUM_PROCESSES.value is not None or _PROCESS_ID.value is not None):
            raise UserError("--num_processes and --process_id say nothing without --coordinator=HOST:PORT: give it.")
        if _several():
            hosts.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CONNECT_SECONDS.value)
        if _STAGES.value == []:
            raise UserError("--stages names no stage: leave it out for all of them.")
        stages = pipeline.STAGES if _STAGES.value is None else _STAGES.value
        workdir, export_to, profile = (_folder(flag) for flag in (_WORKDIR, _EXPORT, _PROFILE))
        assert workdir is not None
        jax.devices()
        if not _several():  # whose signals are JAX's
            signals.handle()  # libtpu may have handlers of its own
        try:
            pipeline.run(_CONFIG.value, workdir, stages, _QUERY.value, export_to=export_to, profile=profile)
        except jax.errors.JaxRuntimeError as error:
            if not _several():
                raise
            said = " ".join(str(error).split())
            console.fail(
                f"the processes cannot go on together ({said}): unless this one has failed by itself, another one has "
                "ended or is no longer reached; the same command on all hosts goes on from what was finished."
            )
            return os.EX_TEMPFAIL
        if not _several():  # which have agreed by now that all is done
            signals.obey()  # the last moments count too: a script must not go on after a Ctrl-C
    except UserError as error:
        console.fail(str(error))
        return 2
    except OSError as error:
        from cdisc.app import checkpoints

        sentence = checkpoints.complaint(error, _folder(_WORKDIR))
        if sentence is None:
            raise
        console.fail(sentence)
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


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, with a sentence instead of a traceback where they cannot be parsed."""
    for argument, following in itertools.pairwise([*argv, ""]):
        name, _, value = argument.partition("=")
        file = (value if value else following).partition(":")[0]
        if name in ("--config", "-config") and not pathlib.Path(file).is_file():
            console.fail(f"there is no config file {file!r}: give one such as configs/colormnist.py:small.")
            sys.exit(2)
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        console.fail(_no_field(error, argv))
    except (flags.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        # Where the config file raised, the message is a traceback, whose last line is the sentence.
        lines = str(error).strip().splitlines() if "Traceback" in str(error) else [" ".join(str(error).split())]
        console.fail(lines[-1].removeprefix("ValueError: "))
    sys.exit(2)


def _no_field(error: AttributeError | KeyError, argv: list[str]) -> str:
    """The sentence for a field that the configuration does not have: ml_collections names it without its section."""
    # It wraps its KeyError, whose text would be quoted, in an AttributeError.
    inner = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
    said = " ".join(str(inner).split())
    found = re.search(r"""(\w+)\W*(?:does not exist.*|Did you mean "(\w+)".*)?$""", said)
    assert found is not None
    paths = [argument.lstrip("-").partition("=")[0].split(".") for argument in argv]
    path = next((path for path in paths if found[1] in path), [found[1]])
    name = ".".join(path[: path.index(found[1]) + 1])
    return f"{name} does not exist" + (f"; did you mean {found[2]!r}?" if found[2] else ".")


def run() -> None:
    """The command."""
    app.run(main, flags_parser=parse)
