"""The one place that knows other processes: how they find one another, agree, and end together.

A run on several hosts is the same command on each of them. The processes meet through JAX's coordination service, which
the first of them holds and whose key-value store carries what they say to one another here. The first process alone
speaks and writes what there is one of; all read the one workdir.

How they end: a process that stops, or fails with a sentence, says so, and the others follow (`leave`). One that dies
says nothing. JAX then aborts the others, at once if it was the first process and after `_HEARTBEAT` seconds if not, and
all that can be done about it is to have the last word (`_abort`). No clocks are compared.
"""

import collections
import contextlib
import ctypes
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

# The store has no public name; Orbax and Flax reach for it like this, too.
from jax._src import distributed

from cdisc import console, signals
from cdisc.app import devices
from cdisc.errors import UserError

_HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as dead."""

_PATIENCE = 300.0
"""Seconds that a stopping process waits for the others, of which one may be saving."""

_STEPS_BEHIND = 2
"""Steps after which it is read whether a process was asked to stop: by then it is known, and nothing waits for it."""

_SAME_REASON = 1.0
"""Seconds that a process has to find by itself, and say, why another one has failed."""

_meetings = itertools.count()
_connected = False
_leaving: int | None = None


def _client() -> Any:
    return distributed.global_state.client


def several() -> bool:
    """Whether this process is one of several."""
    return _client() is not None


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
      seconds: how long to wait for the others.

    Raises:
      UserError: if they cannot be brought together. Where others have not come in time, or the process is asked to stop
        meanwhile, it ends here.
    """
    global _connected
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator is {coordinator!r}: give HOST:PORT, an address of the first process's host.")
    # Its handler would take SIGTERM away from `signals`.
    jax.config.update("jax_enable_preemption_service", False)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, _Handler)
    libc.signal(signal.SIGABRT, _abort)  # Python's own handlers would only run after the abort
    done = threading.Event()
    threading.Thread(target=_end_before, args=(done, seconds), daemon=True).start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=int(seconds) + 60,  # when it is over, JAX aborts
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
        if _alone_on_host() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # Under Slurm and Open MPI, JAX has given it one GPU, that of its rank on the host.
            jax.config.update("jax_cuda_visible_devices", "all")
            jax.config.update("jax_rocm_visible_devices", "all")
        _connected = True
        speaks = first()  # starts the devices, of which all processes hear now
        libc.signal(signal.SIGABRT, _abort)  # again, for libtpu may have a handler of its own
    except Exception as error:  # JAX asks each kind of cluster through a library with errors of its own
        raise UserError(
            f"the processes cannot be brought together ({' '.join(str(error).split())}): give --coordinator=HOST:PORT, "
            "with a port that is free there, --num_processes and --process_id, or use --distributed where JAX can find "
            "them (a TPU pod, Slurm, Open MPI, Kubernetes)."
        ) from error
    finally:
        done.set()
    threading.Thread(target=_listen, daemon=True).start()
    if not speaks:
        console.mute()


def _alone_on_host() -> bool:
    """Whether Open MPI, or Slurm without it, has started one process on each host."""
    mpi = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    tasks, nodes = (os.environ.get(f"SLURM_STEP_NUM_{what}") for what in ("TASKS", "NODES"))
    return tasks is not None and tasks == nodes if mpi is None else mpi == "1"


def gather(value: str = "") -> list[str]:
    """What every process says here, in their order: waits for all, so it is a meeting, too, and a place to stop."""
    return _gather(f"cdisc/meeting/{next(_meetings)}", value) if several() else [value]


def _gather(key: str, value: str) -> list[str]:
    client = _client()
    client.key_value_set(f"{key}/{jax.process_index():06d}", value)
    wait = 0.01
    while len(said := client.key_value_dir_get(f"{key}/")) < jax.process_count():
        signals.obey()
        time.sleep(wait)
        wait = min(2 * wait, 0.5)
    return [value for _, value in sorted(said)]


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
    with tempfile.NamedTemporaryFile(dir=folder, prefix="shared.") if first() else contextlib.nullcontext() as mark:
        name = gather("" if mark is None else os.path.basename(mark.name))[0]
        seen = gather(str((folder / name).exists()))
    if "False" in seen:
        raise UserError(
            f"{folder} of process {seen.index('False')} is another folder than that of process 0: choose a --workdir "
            "that all hosts share."
        )


class Stopping:
    """Whether to stop, as all processes hear it at the same step of training; to be asked once in each."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._answers: collections.deque[jax.Array] = collections.deque()
        if several():
            # CPUs find one another at their first collective, and give up after 30 s, in which another process may
            # still be compiling its first step.
            gather()
            devices.any_process(False).block_until_ready()

    def __call__(self) -> bool:
        """Whether any process had been asked to stop a few steps ago; `signals.obey` then stops each of them."""
        if not several():
            return signals.asked()
        self._answers.append(devices.any_process(signals.asked()))
        stopping = len(self._answers) > _STEPS_BEHIND and bool(self._answers.popleft())
        if stopping:
            signals.ask(signal.SIGTERM)
        return stopping


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """An error that follows from the death of another process waits for JAX to notice that death."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception:
        if several():
            time.sleep(1.5 * _HEARTBEAT)
        raise


def leave(code: int) -> None:
    """Ends this process, if it is one of several, and has the others end too unless `code` is 0."""
    global _leaving
    if not several():
        return
    client, _leaving, number = _client(), code, signals.behind(code)
    try:
        if code == 0:
            jax.distributed.shutdown()  # waits for the others
        else:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was quicker
                client.key_value_set("cdisc/last_word", f"{jax.process_index()} {code} {number}")
            client.key_value_set(f"cdisc/left/{jax.process_index()}", "")
            until = time.monotonic() + (_PATIENCE if number else 5.0)
            while len(client.key_value_dir_get("cdisc/left/")) < jax.process_count() and time.monotonic() < until:
                time.sleep(0.1)
            if first():
                time.sleep(0.5)  # JAX aborts, with many words, those that are still there when the first one is not
    except jax.errors.JaxRuntimeError:
        pass  # the first process has gone, or another has not come
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly end would wait for the others, or trip over the thread that listens


def _listen() -> None:
    """Waits for the last word of a process; follows it."""
    client = _client()
    try:
        word = client.blocking_key_value_get("cdisc/last_word", 2**31 - 1)
    except jax.errors.JaxRuntimeError:
        return  # this process ends
    who, code, number = map(int, word.split())
    if who == jax.process_index():
        return
    if number:
        signals.ask(signal.Signals(number))
        return
    time.sleep(_SAME_REASON)
    if _leaving is None:
        console.fail(f"process {who} could not go on, and has said why; so this one, {jax.process_index()}, ends too.")
        leave(code)


def _end_before(done: threading.Event, seconds: float) -> None:
    """Ends this process if it is asked to stop, or the time is over, before `done`: its main thread is in JAX."""
    until = time.monotonic() + seconds
    while not done.wait(0.2):
        try:
            signals.obey()
        except signals.Stopped as stopped:
            console.fail(str(stopped))
            os._exit(stopped.code)
        if time.monotonic() >= until:
            address = distributed.global_state.coordinator_address or "which JAX looks for"
            console.fail(
                f"the processes came together, but not all of their devices started within {seconds:.0f} s: see what "
                "the others say, and that nothing else uses the devices of their hosts."
                if _connected
                else f"not all processes came together at the coordinator {address} within {seconds:.0f} s: see that "
                "the first process runs, that this address reaches it from every host, and that --num_processes of "
                "them are started."
            )
            os._exit(2)


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_Handler
def _abort(number: int) -> None:
    if _leaving is not None:
        os._exit(_leaving)  # the first process was quicker
    me = distributed.global_state.process_id
    text, code = (
        f"process {me} ends because another one does not answer any more or is no longer reached, unless it has failed "
        "by itself and said so above; the same command on all hosts goes on from what was finished.",
        os.EX_TEMPFAIL,
    )
    if not _connected:
        text, code = f"process {me} was refused by the others: see that each has a --process_id of its own.", 2
    # Written without a lock: this may interrupt the thread that holds it.
    os.write(2, f"cdisc: {text}\n".encode())
    os._exit(code)
