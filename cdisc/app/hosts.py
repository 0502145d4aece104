"""Several processes: how they come together, agree, and stop at the same place.

A run on several hosts is the same command on each of them. The processes go through it in step and meet in collective
operations (`jax.experimental.multihost_utils`): a training step, a round of queries, what `gather` exchanges. The first
process alone speaks, and alone writes checkpoints and results; all read the one workdir.

SIGTERM to one process stops all of them at the same step: JAX's preemption service agrees on it. It knows no other
signal, so a process passes Ctrl-C and SIGHUP on to itself as SIGTERM.

A process that fails says why and ends. JAX then aborts the others with a report of its own (SIGABRT, code 134): at once
if it was the first process, and otherwise when it has missed the heartbeats of `_HEARTBEAT` seconds. A collective
operation that the network ends earlier is code 75. JAX has no public way to be told of another's death, to have the
last word before its abort, or to hear why another one ends; whoever started the processes sees all of them and can say
so (`launch/local.py`), or starts them again (`launch/slurm.sh`, `launch/kubernetes.yaml`).
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cdisc import console, signals
from cdisc.errors import UserError

_HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as dead."""

_SAME_REASON = 3.0
"""Seconds that the first process leaves the others to find for themselves what it ends for: JAX aborts them then."""

_points = itertools.count()


def several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that speaks and writes."""
    return jax.process_index() == 0


def connect(coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float) -> None:
    """Brings the processes together; to be called before anything is computed.

    Args:
      coordinator: HOST:PORT of the first process. None leaves all three to what JAX finds by itself (a TPU pod, Slurm,
        Open MPI, Kubernetes).
      num_processes: how many there are.
      process_id: which of them this is.
      seconds: how long to wait for the others. If they have not come by then, this process ends here with code 2.

    Raises:
      UserError: if they cannot be brought together.
    """
    port = "0" if coordinator is None else coordinator.rpartition(":")[2]
    if not port.isdecimal():
        raise UserError(f"--coordinator is {coordinator!r}: give HOST:PORT, an address of the first process's host.")
    if coordinator is not None and process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--coordinator is {coordinator}, and that port cannot be used here ({error}).") from error
    signals.handle(signal.SIG_DFL)  # nothing is lost yet, and nothing else ends the wait
    # JAX's own limit aborts the process, so it is later than this one.
    limit = threading.Timer(seconds, _give_up, (coordinator, seconds))
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=int(seconds) + 60,
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
        if _alone_on_host() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # Under Slurm and Open MPI, JAX has given it one GPU, that of its rank on the host.
            jax.config.update("jax_cuda_visible_devices", "all")
            jax.config.update("jax_rocm_visible_devices", "all")
        gather()  # all devices meet: CPUs wait 30 s for one another the first time
    except Exception as error:  # JAX asks each kind of cluster through a library with errors of its own
        raise UserError(
            f"the processes cannot be brought together ({' '.join(str(error).split())}): give --coordinator=HOST:PORT, "
            "--num_processes and a --process_id of its own to each, or use --distributed where JAX can find them (a "
            "TPU pod, Slurm, Open MPI, Kubernetes)."
        ) from error
    finally:
        limit.cancel()
    passed_on = (signal.SIGINT, signal.SIGHUP)
    signals.handle(lambda number, frame: os.kill(os.getpid(), signal.SIGTERM), passed_on)
    if not first():
        console.mute()


def _give_up(coordinator: str | None, seconds: float) -> None:
    console.fail(
        f"not all processes came together at the coordinator {coordinator or 'that JAX has found'} within "
        f"{seconds:.0f} s with their devices: see that the first process runs, that this address reaches it from every "
        "host, that --num_processes of them are started, and that nothing else uses the devices of their hosts."
    )
    os._exit(2)


def _alone_on_host() -> bool:
    """Whether Open MPI, or Slurm without it, has started one process on each host."""
    mpi = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    tasks, nodes = (os.environ.get(f"SLURM_STEP_NUM_{what}") for what in ("TASKS", "NODES"))
    return tasks is not None and tasks == nodes if mpi is None else mpi == "1"


def gather(value: str = "") -> list[str]:
    """What every process says here, in their order: waits for all, so it is a meeting, too."""
    return [said.decode() for said in exchange(value.encode())]


def exchange(content: bytes) -> list[bytes]:
    """What every process gives here, in their order."""
    if not several():
        return [content]
    said = np.frombuffer(content, np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(said.size))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: said.size] = said
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def first_says(value: Any) -> Any:
    """What the first process says here, for all to go by: others may be shown late what it has written."""
    return json.loads(gather(json.dumps(value))[0])


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through this by itself and the others after it, so that what it leaves is there."""
    if not first():
        gather()
    yield
    if first():
        gather()


def require_alike(**facts: Any) -> None:
    """Makes sure that all processes have the same.

    Raises:
      UserError: if not; in every process, naming the first one that differs.
    """
    said = [json.loads(text) for text in gather(json.dumps([socket.gethostname(), facts], default=str))]
    host, expected = said[0]
    for i, (other, found) in enumerate(said):
        for name in expected | found:
            ours, theirs = expected.get(name), found.get(name)
            if theirs != ours:
                raise UserError(
                    f"process {i} on {other} has {name} {theirs}, and process 0 on {host} has {ours}: "
                    "run the same command with the same software on hosts that are alike."
                )


def require_shared(folder: pathlib.Path) -> None:
    """Makes sure that `folder` is one and the same for all processes.

    Raises:
      UserError: if not; in every process, naming the first one that has another.
    """
    # A file of a new name, for which nobody has looked: NFS keeps for a minute that a file was not there.
    with (
        tempfile.NamedTemporaryFile(dir=folder, prefix="config.json.", suffix=".partial")
        if first()
        else contextlib.nullcontext() as mark
    ):
        name = first_says(mark and os.path.basename(mark.name))
        seen = gather(str((folder / name).exists()))
    if "False" in seen:
        raise UserError(
            f"{folder} of process {seen.index('False')} is another folder than that of process 0: choose a --workdir "
            "that all hosts share."
        )


def stopping() -> bool:
    """Whether to stop here, the same for all processes; each of them asks equally often, in steps and rounds alike."""
    if multihost_utils.reached_preemption_sync_point(next(_points)):
        signals.ask(signal.SIGTERM)
    return signals.asked()


def leave(code: int) -> None:
    """Ends this process, one of several, with `code`: together with the others if all of them come here."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (0, signals.CODES[signal.SIGTERM]):
        jax.distributed.shutdown()  # waits for the others, of which the first may be saving
    elif first():
        time.sleep(_SAME_REASON)
    os._exit(code)  # an orderly end would wait for the others in any case
