"""Whether a run that is killed and started again ends where an unbroken one does, bit for bit.

    python -m benchmarks.survival --config=configs/colormnist.py:tiny --kills=50 --workdir=runs/survival

Two unbroken runs first: the one fills the compilation cache, the other says what a run takes and leaves. Then runs that
are killed at moments drawn uniformly from what it takes, in processor seconds, which a busy machine does not stretch,
and started again by the same command, until one start reaches the end; and as many such runs as it takes to spend the
kills. Every array of every checkpoint, the metrics of training and `results.json` without its seconds must be those of
the unbroken run. With `--signal=INT` or `TERM` the run is asked instead, and how it ends is told too. What follows `--`
is given to the command: other values of the configuration, for instance.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from cdisc import console, runtime

_CONFIG = flags.DEFINE_string("config", "configs/colormnist.py:tiny", "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for all runs; it must not exist.")
_KILLS = flags.DEFINE_integer("kills", 50, "How many times a run is stopped.")
_SIGNAL = flags.DEFINE_enum("signal", "KILL", ["KILL", "INT", "TERM"], "What stops it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def main(argv: list[str]) -> int:
    """Prints a line for each run and a summary; returns 1 if any run differs from the unbroken one."""
    runtime.configure()
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True)
    unbroken = []
    for name in ("first", "unbroken"):
        code, out, err, whole = run(workdir / name, argv[1:], math.inf)
        if (code, err) != (0, ""):
            console.fail(f"the unbroken run ends with {code}: {out}{err}")
            return 1
        unbroken.append(contents(workdir / name))
        console.say(f"{name}: {whole:.1f} s")
    expected = unbroken[1]
    wrong = [f"unbroken: {name}" for name in differences(expected, unbroken[0])]
    moments = random.Random(_SEED.value)
    stages: collections.Counter[str] = collections.Counter()
    endings: collections.Counter[str] = collections.Counter()
    trials = 0
    while stages.total() < _KILLS.value:
        trials += 1
        trial = workdir / f"trial_{trials:03d}"
        killed = []
        while True:
            code, out, err, _ = run(trial, argv[1:], moments.uniform(0.0, whole))
            if code == 0:
                break
            killed.append(stage_of(out))
            endings[f"{code}, {len(err.splitlines())} lines" + (", Traceback" if "Traceback" in err else "")] += 1
        if err:
            wrong.append(f"{trial.name}: {err}")
        stages.update(killed)
        wrong += (differing := [f"{trial.name}: {name}" for name in differences(expected, contents(trial))])
        left = sorted(str(path.relative_to(trial)) for end in ("partial", "old") for path in trial.rglob(f"*.{end}"))
        console.say(f"{trial.name}: stopped in {killed}; {len(differing)} differences; left behind: {left}")
        if not differing:
            shutil.rmtree(trial)
    for line in wrong:
        console.say(line)
    console.say(f"{stages.total()} times stopped: {dict(stages)}; endings (code, standard error): {dict(endings)}")
    console.say(f"{trials} runs, {len({line.partition(':')[0] for line in wrong})} of them not as the unbroken one")
    return 1 if wrong else 0


def run(workdir: pathlib.Path, arguments: list[str], moment: float) -> tuple[int, str, str, float]:
    """The command, stopped after `moment` processor seconds.

    Returns:
      Its exit code, standard output and standard error, and the processor seconds that it took.
    """
    command = [sys.executable, "-m", "cdisc.main", f"--config={_CONFIG.value}", f"--workdir={workdir}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while True:
        # A process that has ended keeps its times until its end is asked for.
        spent = processor_seconds(process.pid)
        if process.poll() is not None:
            break
        if spent >= moment:
            process.send_signal(signal.Signals[f"SIG{_SIGNAL.value}"])
            break
        time.sleep(0.005)
    out, err = process.communicate()
    return process.returncode, out, err, spent


def processor_seconds(pid: int) -> float:
    """What all threads of a process have taken, on Linux."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stage_of(out: str) -> str:
    """The stage in which a run was that has printed `out`."""
    from cdisc.app.run import STAGES

    if not out.startswith("cdisc "):
        return "start"
    return (*STAGES, "end")[len(re.findall(r"^\w+: [\d.]+ s$", out, re.MULTILINE))]


def contents(workdir: pathlib.Path) -> dict[str, str]:
    """Digests of all that must not depend on how often the run was stopped, by name."""
    from cdisc.app import checkpoints
    from cdisc.app.report import results as results_lib

    found = {}
    for manifest in sorted(workdir.rglob("manifest.json")):
        for name, array in checkpoints.arrays_of(manifest.parent).items():
            digest = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
            found[f"{manifest.parent.relative_to(workdir)}: {name}"] = digest
    results = results_lib.read(workdir / "results.json")
    del results["seconds"]
    found["results.json"] = json.dumps(results)
    for metrics in workdir.rglob("*.jsonl"):
        found[str(metrics.relative_to(workdir))] = metrics.read_text(encoding="utf-8")
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """The names under which two runs differ; of the last steps of training, only those that both have kept."""
    names = expected.keys() ^ found.keys()
    missing = [name for name in names if not name.startswith("pretrain/train/")]
    return sorted([*missing, *(name for name in expected.keys() & found.keys() if expected[name] != found[name])])


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
