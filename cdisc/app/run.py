"""One run: its configuration, checked before work begins, and what all stages share."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cdisc import storage
from cdisc.app import config as config_lib
from cdisc.app import devices, hosts
from cdisc.app import workdir as workdir_lib
from cdisc.app.resolve import resolve
from cdisc.data import Dataset, compositions
from cdisc.data import queries as queries_lib
from cdisc.data.queries import Query
from cdisc.diffusion import schedule as schedule_lib
from cdisc.errors import about
from cdisc.evaluation import features, methods, protocol
from cdisc.keys import named
from cdisc.networks import backbone as backbone_lib
from cdisc.networks import interop
from cdisc.networks.unet import UNetConfig

STAGES = ("pretrain", "discover", "adapt", "evaluate", "report")
"""In their order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What all stages share.

    Attributes:
      config: the configuration.
      workdir: where the stages leave their results.
      dataset: the pictures.
      scheduler: the forward process, and what the network predicts, as diffusers has them.
      schedule: the same forward process as numbers.
      network: the U-Net's options; None where the score is exact.
      backbone: the model as functions of its parameters.
      queries: the pictures to compose.
      params: the model's parameters, where they need not be trained or restored.
      profile: a folder for traces of a few steps; None traces nothing.
    """

    config: config_lib.Config
    workdir: pathlib.Path
    dataset: Dataset
    scheduler: interop.SchedulerConfig
    schedule: schedule_lib.Schedule
    network: UNetConfig | None
    backbone: backbone_lib.Backbone
    queries: tuple[Query, ...]
    params: Any = None
    profile: pathlib.Path | None = None

    def key(self, stage: str, query: Query | None = None) -> jax.Array:
        """The key of a stage, or of one query in it; a query's follows from its pixels, not from its place."""
        seed = self.config.pretrain.seed if stage == "pretrain" else self.config.seed
        seed = seed if query is None else query.seed
        key = named(jax.random.key(seed), stage)
        return key if query is None else named(key, "query", query.crc)

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What its workdir is bound to, and has in `config.json`."""
        return {
            "config": config_lib.as_dict(self.config),
            "data": self.dataset.fingerprint,
            # With their places: results are kept by place, and two pictures may have one name.
            "queries": {f"{i:04d} {query.name}": f"{query.crc:08x}" for i, query in enumerate(self.queries)},
        }

    @functools.cached_property
    def sampler(self) -> Callable[..., jax.Array]:
        """A compiled sampler, mapped over devices: `(density, starting noise (n, *shape)), params -> (n, *shape)`."""

        def one(item: tuple[methods.GuidedDensity, jax.Array], params: Any) -> jax.Array:
            return methods.sample(self.backbone, params, self.schedule, *item, self.config.sampling)

        return devices.one_by_one(one, num_shared=1)

    def path(self, *parts: str) -> pathlib.Path:
        """A path in the workdir."""
        return self.workdir.joinpath(*parts)

    def trace_folder(self, stage: str) -> pathlib.Path | None:
        """Where the traces of a stage go; None where nothing is traced."""
        return None if self.profile is None else self.profile / stage


def prepare(config: config_lib.Config, workdir: pathlib.Path, query_paths: Sequence[str]) -> Run:
    """Checks everything that can be checked before work begins; the workdir is not touched.

    Raises:
      UserError: for anything in the configuration or the queries that cannot be used.
    """
    config, dataset, network, scheduler, params = resolve(config)
    schedule = scheduler.schedule()
    with about("config.network."):
        backbone = (
            backbone_lib.mixture(schedule)
            if network is None
            else backbone_lib.unet(network, schedule, scheduler.prediction_type)
        )
    settings = config.evaluate
    if query_paths:
        queries = queries_lib.own(query_paths, dataset.shape, config.seed)
    else:
        counts = (settings.num_queries, settings.per_class, settings.seeds)
        queries = queries_lib.held_out(dataset, config.seed, *counts)
    if config.evaluate.features != "judge":
        with about("config.evaluate."):
            features.load(config.evaluate.features, config.evaluate.weights)  # complains now
    for composition in dict.fromkeys(query.composition for query in queries):
        if composition is not None:
            # Complains now, not when everything else is done.
            others = dataset.references(composition, config.evaluate.references + config.evaluate.samples)
            own = np.stack([query.image for query in queries if query.composition == composition])
            title = compositions.title(dataset.split.factors, composition)
            with about(f"{dataset.name}, {title}: "):
                protocol.require_disjoint({"the queries": own, "the references": np.asarray(others)})
    return Run(config, workdir, dataset, scheduler, schedule, network, backbone, queries, params)


@contextlib.contextmanager
def opened(config: config_lib.Config, workdir: pathlib.Path, query_paths: Sequence[str]) -> Iterator[Run]:
    """What `prepare` gives, in a workdir locked by this process and bound to this configuration and its queries.

    Raises:
      UserError: as `prepare`, and for a workdir that cannot be written, is in use, or was made with others, or
        that processes do not share.
    """
    run = prepare(config, workdir, query_paths)
    hosts.require_alike(data=run.dataset.fingerprint[:12], queries=storage.digest(run.content["queries"])[:12])
    begun = os.path.exists(workdir / "config.json")
    storage.writable(workdir, "work on a copy of it that can be written" if begun else "choose another --workdir")
    with workdir_lib.locked(workdir) if hosts.first() else contextlib.nullcontext():
        hosts.require_shared(workdir)
        workdir_lib.bind(workdir, run.content)
        yield run
