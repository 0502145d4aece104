"""What a workdir belongs to, what may change in it, and that one run at a time uses it.

Its `config.json` has the configuration, the data's fingerprint and the queries. A change is accepted where it loses no
work but the evaluation's, which is then done anew:

* A field that affects results by rounding at most, or says where something lies, may always change.
* A field may change while no stage has begun that reads it, or what it read from a stage that did: so those of
  `discover` may, before discovery.
* A field that only the evaluation reads may change: the samples are drawn anew, unless it concerns no more than how
  they are measured.
* Queries may be added at the end.

Anything else is refused, with the fields' old and new values, and with the folders to remove for those who want it.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

from flax.traverse_util import flatten_dict

from cdisc import console, storage
from cdisc.app import hosts
from cdisc.errors import UserError

_FREE = (
    "config.data.cache",
    "config.data.manifest",
    "config.data.outside",
    "config.data.root",
    "config.network.path",
    "config.network.remat",
    "config.pretrain.accumulate",
    "config.pretrain.keep",
    "config.pretrain.restore",
    "config.pretrain.samples_every",
    "config.pretrain.save_every",
    "config.discover.lanes",
    "config.adapt.chunk",
    "config.sampling.batch",
)
"""Fields that affect results by rounding at most; where data lie is no matter while their fingerprint is the same."""

_WORK = ("pretrain", "discover", "adapt")
"""The stages whose results are kept in any case."""

_READERS = (*_WORK, "evaluate", "judge", "figures")
"""In their order."""

_READ_FIRST = {
    "": "pretrain",
    "queries": "discover",
    "config.seed": "discover",
    "config.discover": "discover",
    "config.adapt": "adapt",
    "config.sampling": "adapt",
    "config.guidance": "evaluate",
    "config.evaluate": "evaluate",
    "config.evaluate.judge": "judge",
    "config.evaluate.num_queries": "figures",
    "config.evaluate.per_class": "figures",
    "config.evaluate.seeds": "figures",
    "config.evaluate.features": "figures",
    "config.evaluate.weights": "figures",
    "config.evaluate.references": "figures",
    "config.evaluate.k": "figures",
}
"""The stage, or the part of the evaluation, that is the first to read a field; the longest name counts."""


def first_reader(name: str) -> str:
    """Which of the stages, or of "judge" and "figures", is the first to read the field `name` of `config.json`."""
    parts = name.split(".")
    known = (".".join(parts[:i]) for i in range(len(parts), -1, -1))
    return next(_READ_FIRST[prefix] for prefix in known if prefix in _READ_FIRST)


def identity(content: dict[str, Any], reader: str) -> str:
    """The SHA-256 of all that decides what a stage leaves of one query, or of all that decides the "figures".

    Where `bind` accepts a change and keeps what there is, it stays the same.

    Args:
      content: as `bind` takes it.
      reader: the stage, or "figures".
    """
    earlier, free = _READERS[: _READERS.index(reader) + 1], _free(content)
    return storage.digest(
        {
            name: value
            for name, value in flatten_dict(content, sep=".").items()
            # Queries may be added, and only the figures are of all of them.
            if ("figures" if name.startswith("queries.") else first_reader(name)) in earlier and name not in free
        }
    )


def bind(workdir: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes `content` to the workdir's `config.json`, and removes what a change that is accepted makes outdated.

    Args:
      workdir: the folder.
      content: "config", as nested dictionaries; "data", their fingerprint; "queries", by place and name.

    Raises:
      UserError: if what is there would be lost, or cannot be read.
    """
    path, content = workdir / "config.json", json.loads(json.dumps(content))  # as it is read again
    before = None
    try:
        before = storage.read_json(path, "")
    except (FileNotFoundError, storage.DamagedError) as error:
        # It may be a folder of something else.
        there = [name for name in (*_WORK, "evaluate", "results.json", "config.json") if (workdir / name).exists()]
        if there:
            raise UserError(
                f"{path}, which says how {workdir} was made, is missing or not as this version wrote it: choose "
                f"another --workdir, or remove {' and '.join(there)} from this one."
            ) from error
    changed = {} if before is None else _changes(before, content)
    readers = {first_reader(name) for name in changed}
    said = ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in list(changed.items())[:3])
    said += f", and {len(changed) - 3} more" if len(changed) > 3 else ""
    since = min((_WORK.index(reader) for reader in readers if reader in _WORK), default=len(_WORK))
    lost = [stage for stage in _WORK[since:] if (workdir / stage).exists()]
    if lost:
        raise UserError(
            f"{workdir} was made otherwise: {said}. Choose another --workdir, or remove {' and '.join(lost)} from this "
            "one."
        )
    if hosts.first():
        if changed:
            console.say(f"{workdir}: {said}")
        if before is not None and (readers or before["queries"] != content["queries"]):
            # First, so that whoever is killed meanwhile comes by here again.
            outdated = [workdir / "results.json"]
            if readers & {*_WORK, "evaluate"}:
                outdated += (workdir / "evaluate").glob("query_*")
            if readers & {"pretrain", "judge"}:
                outdated.append(workdir / "evaluate" / "judge")
            for old in outdated:
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if before != content:
            storage.write_json(path, content)
    hosts.gather()  # the others go on when this is done


def _free(content: dict[str, Any]) -> set[str]:
    """The fields that may always change."""
    best = content["config"]["pretrain"]["result"] == "best"  # of those that are saved
    return set(_FREE) - ({"config.pretrain.save_every"} if best else set())


def _changes(before: dict[str, Any], content: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of `config.json` that are no longer what they were, without those that may always change."""
    free, added = _free(content), before["queries"].items() <= content["queries"].items()
    old, new = (flatten_dict(fields, sep=".") for fields in (before, content))
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free and not (added and name.startswith("queries."))
    }


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps `workdir` for this process alone; the kernel gives it free when the process ends, however it ends.

    The file `lock` says who has it. The folder itself is locked too, because that file may be removed; on network
    folders the system may lock nothing but files.

    Raises:
      UserError: if another process has it, naming that process and its host.
    """
    with contextlib.ExitStack() as stack:
        itself = os.open(workdir, os.O_RDONLY)
        stack.callback(os.close, itself)
        # Appending keeps the holder's name, which is read by those who are refused.
        file = stack.enter_context((workdir / "lock").open("a+", encoding="utf-8", errors="replace"))
        failed = []
        for place in (itself, file):
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise UserError(
                    f"{workdir} is in use by {file.read(200) or 'another process'}: wait for its end or choose another "
                    "--workdir."
                ) from error
            except OSError as error:
                failed.append(error.strerror)
        if len(failed) == 2:
            console.warn(f"{workdir} cannot be locked ({failed[1]}): see to it that no other run uses it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
        if not (workdir.exists() and os.path.samestat(os.fstat(itself), os.stat(workdir))):
            raise UserError(
                f"{workdir} was removed while this run used it, so what is there now is not whole: choose another "
                "--workdir and run again."
            )
