"""The stages in their order: pretrain, discover, adapt, evaluate, report. Only this module passes results on.

A stage is a function of the run and of what earlier stages left. It writes each finished piece to the workdir at once
and reads it from there the next time, so a run goes on where it was, however it was stopped.
"""

import contextlib
import dataclasses
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence

import jax
from flax.traverse_util import flatten_dict

from cdisc import console, runtime, signals, storage
from cdisc.app import config as config_lib
from cdisc.app import hosts
from cdisc.app.run import STAGES, Run, opened
from cdisc.app.stages.adapt import adapt
from cdisc.app.stages.benchmark import benchmark
from cdisc.app.stages.discover import discover, follow
from cdisc.app.stages.evaluate import evaluate
from cdisc.app.stages.export import export
from cdisc.app.stages.pretrain import pretrain
from cdisc.app.stages.report import report
from cdisc.app.stages.saved import note_seconds
from cdisc.errors import UserError, nearest

_SMALLER = {
    "pretrain": "raise config.pretrain.accumulate or set config.network.remat=True",
    "discover": "lower config.discover.lanes",
    "adapt": "lower config.adapt.chunk or config.sampling.batch",
    "evaluate": "lower config.sampling.batch",
}
"""What to do where a stage's memory is short. None of it changes the results, except by rounding."""


def run(
    config: config_lib.Config,
    workdir: pathlib.Path,
    stages: Sequence[str],
    query_paths: Sequence[str],
    export_to: pathlib.Path | None = None,
    profile: pathlib.Path | None = None,
) -> None:
    """Runs `stages`, in their order, and leaves their results in `workdir`.

    Args:
      config: the configuration.
      workdir: a folder, made if it is not there.
      stages: some of `STAGES`. What the others should have left is taken from the workdir. "benchmark" comes after
        evaluation, and runs all stages up to there.
      query_paths: pictures to compose; none takes held-out ones.
      export_to: a folder for what was learnt, in the form of diffusers and PEFT; None writes none.
      profile: a folder for traces of a few steps of each stage.

    Raises:
      UserError: for every error that the user can fix.
    """
    known = (*STAGES, "benchmark")
    for stage in stages:
        if stage not in known:
            raise UserError(f"there is no stage {stage!r}{nearest(stage, known) or ': use ' + ', '.join(known) + '.'}")
    if "benchmark" in stages:
        stages = (*STAGES[:-1], *stages)
    if export_to is not None and isinstance(config.network, config_lib.ExactScore):
        raise UserError("--export writes a network, and config.network.kind is 'exact': leave it out.")
    hosts.require_alike(
        **flatten_dict({"config": config_lib.as_dict(config)}, sep="."),
        stages=",".join(stages),
        workdir=workdir,
        devices=jax.local_device_count(),
        **runtime.versions(),
    )
    with opened(config, workdir, query_paths) as opened_run:
        console.say(
            f"{machine()}, config {storage.digest(config_lib.as_dict(config))[:12]}, seed {config.seed}, "
            f"{len(opened_run.queries)} queries"
        )
        run_stages(dataclasses.replace(opened_run, profile=profile), stages, export_to)
        hosts.gather()  # JAX gives up on processes that do not end together


def machine() -> str:
    """What a run runs on: cdisc's version, devices, hosts, memory, and the versions of the libraries under it."""
    found = runtime.versions()
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    on_devices = f"{sum(limits) / 2**30:.1f} GiB on devices, " if any(limits) else ""
    on_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    rest = ", ".join(f"{name} {found[name]}" for name in found if name not in ("cdisc", "device"))
    return (
        f"cdisc {found['cdisc']} on {jax.device_count()} {found['device']} device(s) of {jax.process_count()} host(s), "
        f"memory {on_devices}{on_host:.1f} GiB on the host, Python {platform.python_version()}, {rest}"
    )


def run_stages(run: Run, stages: Sequence[str], export_to: pathlib.Path | None) -> None:
    """Runs `stages` in their order, and the export after adaptation."""
    # A stage that was not asked for is needed only by a later one that was.
    asked = [*stages, "adapt"] if export_to else stages
    last = max(STAGES.index(stage) for stage in asked if stage in STAGES)
    with clock(run, "pretrain", stages) as active:
        params = pretrain(run, active)
    if last == STAGES.index("pretrain"):
        return
    with clock(run, "discover", stages) as active:
        discoveries = discover(run, params, active)
        hierarchy = follow(run, params, discoveries, active) if hosts.first() else None
    if last == STAGES.index("discover"):
        return
    with clock(run, "adapt", stages) as active:
        models = adapt(run, params, discoveries, active)
    if export_to is not None and hosts.first():
        export(run, params, discoveries, models, export_to)
    if last == STAGES.index("adapt"):
        return
    with clock(run, "evaluate", stages) as active:
        samples = evaluate(run, params, discoveries, models, active)
    if "benchmark" in stages and hosts.first():
        benchmark(run)
    if last == STAGES.index("evaluate"):
        return
    with clock(run, "report", stages):
        if hosts.first():
            report(run, params, discoveries, samples, hierarchy)


@contextlib.contextmanager
def clock(run: Run, stage: str, stages: Sequence[str]) -> Iterator[bool]:
    """Notes the seconds that a stage takes in `seconds.json`; yields whether it was asked for; a run can stop here."""
    signals.obey()
    start = time.monotonic()
    try:
        yield stage in stages
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        short = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        if not short or stage not in _SMALLER:
            raise
        raise UserError(
            f"{stage}: a device or its host is short of memory: {_SMALLER[stage]}, then run again; --dry_run says how "
            "much is needed, and what was finished is kept."
        ) from error
    finally:
        seconds = time.monotonic() - start
        if stage in stages and hosts.first():
            note_seconds(run.path("seconds.json"), stage, seconds, finished=sys.exception() is None)
    if stage in stages:
        console.say(f"{stage}: {seconds:.1f} s")
