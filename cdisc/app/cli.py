"""Discovers the concepts of pictures, composes and learns what they teach, and shows how good that is.

    python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/digits
    python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/mine --query=PICTURE
    cdisc --config=avatars:large --config.pretrain.batch_size=64 --dry_run

The second form is the same command, and a configuration that comes with cdisc has a name: no clone is needed.
--config.FIELD=VALUE changes any field of the configuration, and `cdisc.app.config` says what each of them is for.

It exits with 0 when all is done, with 2 and one sentence when the user can fix what is wrong or has stopped it with
Ctrl-C, and with 143 or 129 when SIGTERM or SIGHUP has (`cdisc.signals`). One of several processes exits with 75 when
the network tells that another one has died; otherwise JAX aborts it, with 134 (`cdisc.app.hosts`).
"""

import itertools
import os
import pathlib
import sys
import traceback

import ml_collections
from absl import app, flags
from ml_collections import config_flags

import cdisc
from cdisc import console, runtime, signals, storage
from cdisc.errors import UserError, nearest

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The configuration: a file, or a name such as colormnist:small."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all results go; a run that was stopped goes on from there.")
_STAGES = flags.DEFINE_list(
    "stages", None, "Some of pretrain,discover,adapt,evaluate,report, which are all by default; or benchmark."
)
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

_CONFIGS = pathlib.Path(cdisc.__file__).parent / "configs"


def main(argv: list[str]) -> int:
    """Runs the stages; returns the exit code."""
    if not (_DISTRIBUTED.value or _COORDINATOR.value):
        return _run(argv, several=False)
    try:
        code = _run(argv, several=True)
    except Exception:
        traceback.print_exc()
        code = 1
    from cdisc.app import hosts

    hosts.leave(code)
    return code


def _run(argv: list[str], several: bool) -> int:
    try:
        if len(argv) > 1:
            raise UserError(f"{argv[1]!r} is not an option: all of them begin with --.")
        if _CONFIG.value is None or (_WORKDIR.value is None and not _DRY_RUN.value):
            raise UserError("give --config=FILE and --workdir=DIR.")
        # JAX, which these import, reads its environment when it is first imported.
        from cdisc.app import config as config_lib

        config = config_lib.read(_CONFIG.value)
        if "benchmark" in (_STAGES.value or ()):
            from cdisc.app.stages import benchmark

            config = benchmark.expanded(config)
        if _DRY_RUN.value:
            from cdisc.app import dry_run

            console.say(dry_run.report(config, _DEVICE_COUNT.value))
            return 0
        import jax

        from cdisc.app import hosts, pipeline

        if not several and (_NUM_PROCESSES.value is not None or _PROCESS_ID.value is not None):
            raise UserError("--num_processes and --process_id say nothing without --coordinator=HOST:PORT: give it.")
        if several:
            hosts.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _CONNECT_SECONDS.value)
        if _STAGES.value == []:
            raise UserError("--stages names no stage: leave it out for all of them.")
        stages = pipeline.STAGES if _STAGES.value is None else _STAGES.value
        workdir, export_to, profile = (_folder(flag) for flag in (_WORKDIR, _EXPORT, _PROFILE))
        assert workdir is not None
        for flag, folder in ((_EXPORT, export_to), (_PROFILE, profile)):
            if folder is not None:  # complains now, not when hours of work are done
                storage.writable(folder, f"choose another --{flag.name}")
        jax.devices()
        if not several:  # whose signals are JAX's
            signals.handle()  # libtpu may have handlers of its own
        try:
            pipeline.run(config, workdir, stages, _QUERY.value, export_to=export_to, profile=profile)
        except jax.errors.JaxRuntimeError as error:
            if not several:
                raise
            said = " ".join(str(error).split())
            console.fail(
                f"the processes cannot go on together ({said}): unless this one has failed by itself, another one has "
                "ended or is no longer reached; the same command on all hosts goes on from what was finished."
            )
            return os.EX_TEMPFAIL
        if not several:  # which have agreed by now that all is done
            signals.obey()  # the last moments count too: a script must not go on after a Ctrl-C
    except UserError as error:
        console.fail(str(error))
        return 2
    except OSError as error:
        sentence = storage.complaint(error, _folder(_WORKDIR))
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
    if not flag.value.strip():
        raise UserError(f"--{flag.name} is empty: give a folder.")
    if "://" in flag.value:
        raise UserError(
            f"--{flag.name} is {flag.value!r}, and only folders can be written: mount the bucket as one, or copy the "
            "results there when the run is done."
        )
    return storage.user_path(flag.value)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, with a sentence instead of a traceback where they cannot be parsed."""
    argv, file = list(argv), None
    for place, (argument, following) in enumerate(itertools.pairwise([*argv, ""])):
        name, given, value = argument.partition("=")
        if name in ("--config", "-config"):
            file = _file(value if given else following)
            argv[place : place + (1 if given else 2)] = [f"--config={file}"]
            break
    try:
        if file is not None:
            _require_fields(file, argv)
        return flags.FLAGS(argv)
    except UserError as error:
        console.fail(str(error))
    except Exception as error:  # a config file may raise anything
        # Where it did, the message is a traceback, whose last line is the sentence.
        lines = str(error).strip().splitlines() if "Traceback" in str(error) else [" ".join(str(error).split())]
        if "get_config() takes 0 positional arguments" in lines[-1]:
            lines[-1] = f"{str(file).partition(':')[0]} has no variants: leave what follows the colon out."
        said = isinstance(error, flags.Error | OSError | SyntaxError | TypeError | ValueError)
        console.fail(
            ("" if said else f"{file} raised {type(error).__name__}: ") + lines[-1].removeprefix("ValueError: ")
        )
    sys.exit(2)


def _file(config: str) -> str:
    """The file of a configuration that is given by a name, such as "colormnist:small"; a path stays, but for a "~"."""
    name, *variant = config.split(":")
    file = _CONFIGS / f"{name}.py"
    named = file.is_file() and not pathlib.Path(name).is_file()
    return ":".join([str(file), *variant]) if named else os.path.expanduser(config)


def _require_fields(file: str, argv: list[str]) -> None:
    """Refuses options for fields that the configuration in `file` does not have, and for whole sections of it.

    `ml_collections` would raise errors without the section's name for the one, and empty sections for the other.
    """
    path = file.partition(":")[0]
    if not pathlib.Path(path).is_file():
        there = ", ".join(sorted(found.stem for found in _CONFIGS.glob("[a-z]*.py")))
        raise UserError(
            f"there is no config file {path!r}: give one such as configs/colormnist.py:small, or a name of {there}."
        )
    apart = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=apart, sys_argv=[])
    apart(["", f"--config={file}"])
    if not isinstance(config.value, ml_collections.ConfigDict):
        raise UserError(f"{path} has no get_config() that returns a configuration.")
    from flax.traverse_util import flatten_dict  # which imports JAX, as the configuration has by now

    known = flatten_dict(config.value.to_dict(), sep=".")
    for argument in argv:
        first, _, name = argument.lstrip("-").partition("=")[0].partition(".")
        if not argument.startswith("-") or first not in ("config", "noconfig") or not name:
            continue
        if any(field.startswith(f"{name}.") for field in known):
            raise UserError(f"{argument} sets a whole section: set its fields, as --config.{name}.FIELD.")
        if name not in known:
            raise UserError(f"config.{name} does not exist{nearest(name, known) or '.'}")


def run() -> None:
    """The command."""
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main, flags_parser=parse)
