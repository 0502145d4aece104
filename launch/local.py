"""Several processes of cdisc on this machine, over the loopback address: a run on several hosts without the hosts.

    python launch/local.py --processes=2 --devices=2 -- --config=configs/mixture.py --workdir=runs/mixture

What follows `--` is given to `python -m cdisc.main`. The first process is heard, and of the others the one that failed
first; its exit code is this one's. Where a process dies without a word, the others are ended too, with a sentence here
and exit code 75: the same command goes on from what was finished. Stopping this command stops them all, and none
outlives it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from typing import IO

from absl import app, flags

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many processes.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 1, "How many devices each process takes the CPU for.")
_GRACE = 5.0
"""Seconds that the other processes have to say why they end, too, when one has failed."""

_GUARD = 'while read -r pid; do pids="$pids -$pid"; done; kill -s KILL -- $pids 2>/dev/null'
"""A shell that kills the processes whose numbers it has read when this one, which writes them, has gone."""


def main(argv: list[str]) -> int:
    """Runs the processes to their end; returns the first exit code that is not 0, if there is one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_DEVICES.value}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "XLA_FLAGS": options.strip(),
    }
    command = [sys.executable, "-m", "cdisc.main", *argv[1:], f"--coordinator={address}"]
    command.append(f"--num_processes={_PROCESSES.value}")
    with contextlib.ExitStack() as files:
        said = {i: files.enter_context(tempfile.TemporaryFile()) for i in range(1, _PROCESSES.value)}
        return run(command, environment, said)


def run(command: list[str], environment: dict[str, str], said: dict[int, IO[bytes]]) -> int:
    """Runs the processes, of which all but the first one write their errors to `said`."""
    running: dict[int, subprocess.Popen] = {}
    passed_on: list[int] = []

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        passed_on.append(number)
        for process in running.values():
            process.send_signal(number)

    guard = subprocess.Popen(["sh", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0)
    assert guard.stdin is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    for i in range(_PROCESSES.value):
        running[i] = subprocess.Popen(
            [*command, f"--process_id={i}"],
            env=environment,
            stdout=None if i == 0 else subprocess.DEVNULL,
            stderr=said.get(i),
            process_group=0,  # a terminal would send Ctrl-C to the processes, too, for which two are one too many
        )
        guard.stdin.write(f"{running[i].pid}\n".encode())
        guard.stdin.flush()
    code, until = 0, float("inf")
    while running:
        for i, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[i]
            if process.returncode and not code:
                code = process.returncode
                if not passed_on:  # those that stop do so together, and one of them may be saving
                    until = time.monotonic() + (_GRACE if code > 0 else 0.0)
                if code < 0:
                    name = signal.Signals(-code).name
                    code = 128 - code if passed_on else os.EX_TEMPFAIL
                    sys.stderr.write(
                        f"local.py: process {i} was ended by {name}, and the others end with it; the same command goes "
                        "on from what was finished.\n"
                    )
                if i in said:
                    said[i].seek(0)
                    sys.stderr.write(said[i].read().decode(errors="replace"))
        if time.monotonic() > until:
            for process in running.values():
                process.kill()
        time.sleep(0.05)
    guard.kill()
    return code


if __name__ == "__main__":
    app.run(main)
