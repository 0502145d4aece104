"""What stages leave in the workdir for one another, and for the same command run again."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cdisc import console, signals, storage
from cdisc.app import checkpoints, containers, devices, hosts, watch, workdir
from cdisc.app.run import Run
from cdisc.errors import UserError

_SHOWN_LATE = 90.0
"""Seconds to wait for what another host has written: NFS keeps for a minute that a file was not there."""


def unfinished(stage: str, path: pathlib.Path) -> UserError:
    """The error for a stage that was not asked for and has left no result."""
    return UserError(f"{path} is not there: add {stage} to --stages.")


def meet(paths: Sequence[pathlib.Path]) -> None:
    """Waits for all processes, and until each of them sees what is at `paths`, which they have written.

    Raises:
      UserError: if one is not there.
    """
    hosts.gather()
    until = time.monotonic() + (_SHOWN_LATE if hosts.several() else 0.0)
    for path in paths:
        while not checkpoints.exists(path):
            if time.monotonic() >= until:
                raise UserError(
                    f"{path} was written and is not there: let nothing remove it while a run goes on, and choose a "
                    "--workdir that all hosts share; then run again."
                )
            time.sleep(0.5)


def keep(path: pathlib.Path, result: Any, of: dict[str, Any]) -> None:
    """Saves a result in the workdir as a checkpoint, for the first process alone; `of` says what it is of, in JSON."""
    containers.checkpoint(path, {"of": of, "result": result})


def kept(path: pathlib.Path, of: dict[str, Any]) -> Any:
    """What `keep` saved, on the host.

    Raises:
      DamagedError: if it is damaged, or of something else.
    """
    found = containers.restore(path, storage.AGAIN)
    if found["of"] != of:
        raise storage.DamagedError(f"{path} holds the results of another query or another run")
    return jax.tree.map(np.asarray, found["result"])


class Saved(Sequence[Any]):
    """What a stage left for each query, on the host. Read when asked for: all of it may not fit in memory."""

    def __init__(self, paths: Sequence[pathlib.Path], whose: Sequence[dict[str, Any]]):
        self._paths, self._whose = paths, whose

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return kept(self._paths[index], self._whose[index])


def saved_by_query(
    run: Run,
    stage: str,
    active: bool,
    at_once: int,
    work: Callable[[Sequence[int]], Sequence[Any]],
) -> Saved:
    """What a stage leaves for each query; what was not saved before is worked out and saved.

    Args:
      run: the run.
      stage: its name, and its folder's.
      active: whether the stage was asked for; if not, everything must be there.
      at_once: at most how many queries `work` is given at a time; fewer where a process would else have none.
      work: from indices into `run.queries` to their results.

    Raises:
      UserError: if a result is missing and the stage was not asked for, or cannot be written, or disappears.
    """
    paths = [run.path(stage, f"query_{i:04d}") for i in range(len(run.queries))]
    decided_by = workdir.identity(run.content, stage)
    whose = [{"query": query.crc, "seed": query.seed, "run": decided_by} for query in run.queries]
    missing = set(hosts.first_says([i for i, path in enumerate(paths) if not checkpoints.exists(path)]))
    if missing and not active:
        raise unfinished(stage, paths[min(missing)])
    at_once = min(at_once, -(-len(paths) // jax.process_count()))
    # Always batch the same queries together: other batch-mates can change a result's last bits.
    batches = [batch for batch in devices.groups(range(len(paths)), at_once) if not set(batch).isdisjoint(missing)]
    rounds = list(devices.groups(batches, jax.process_count()))
    for turn in console.progress(watch.traced(rounds, run.trace_folder(stage)), stage, len(rounds)):
        if hosts.stopping():
            signals.obey()
        own = turn[jax.process_index()] if jax.process_index() < len(turn) else ()
        results = zip(map(str, own), work(own) if own else [], strict=True)
        said = hosts.exchange(containers.pack(dict(results)))
        for found in map(containers.unpack, said if hosts.first() else ()):
            for i in missing.intersection(map(int, found)):
                keep(paths[i], found[str(i)], whose[i])
    meet(paths)
    return Saved(paths, whose)


def note_seconds(path: pathlib.Path, stage: str, seconds: float, finished: bool) -> None:
    """Adds to the time of a stage that was stopped; one that only restored its results keeps the time they took."""
    known = _read_times(path)
    before = known.get(stage, {"seconds": 0.0, "finished": False})
    if not before["finished"]:
        known[stage] = {"seconds": before["seconds"] + seconds, "finished": finished}
        storage.write_json(path, known)


def read_seconds(path: pathlib.Path) -> dict[str, float]:
    """Seconds by stage, in the order in which they ran; empty if none has."""
    return {stage: spent["seconds"] for stage, spent in _read_times(path).items()}


def _read_times(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What `note_seconds` wrote; nothing where the file is damaged, for these are only times."""
    try:
        return storage.read_json(path, "times are counted anew")
    except FileNotFoundError:
        return {}
    except storage.DamagedError as error:
        console.warn(str(error))
        return {}
