"""One run: its configuration, checked before work begins, and what all stages share."""

import contextlib
import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cdisc import console, options, storage
from cdisc.app import checkpoints, devices, hosts
from cdisc.app import config as config_lib
from cdisc.app import workdir as workdir_lib
from cdisc.data import Dataset, compositions, pictures
from cdisc.diffusion import schedule as schedule_lib
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.sampling import ddim
from cdisc.errors import UserError, about, short
from cdisc.evaluation import features, methods, protocol
from cdisc.keys import named
from cdisc.networks import backbone as backbone_lib
from cdisc.networks import interop
from cdisc.networks.unet import UNetConfig

STAGES = ("pretrain", "discover", "adapt", "evaluate", "report")
"""In their order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Query:
    """One picture to compose, and what is known about it.

    Attributes:
      name: what it is called in results and report.
      image: (*shape) float32.
      composition: value indices, one for each factor; None if unknown.
      source: where it comes from.
      seed: of all that is done with it.
    """

    name: str
    image: np.ndarray
    composition: tuple[int, ...] | None
    source: str
    seed: int

    @property
    def crc(self) -> int:
        """By which its pixels are known."""
        return zlib.crc32(self.image.tobytes())


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
    profile: pathlib.Path | None = None

    def key(self, stage: str, query: Query | None = None) -> jax.Array:
        """The key of a stage, or of one query in it; a query's follows from its pixels, not from its place."""
        seed = self.config.pretrain.seed if stage == "pretrain" else self.config.seed
        seed = seed if query is None else query.seed
        key = named(jax.random.key(seed), stage)
        return key if query is None else named(key, "query", query.crc)

    @functools.cached_property
    def sampler(self) -> Callable[..., jax.Array]:
        """A compiled sampler, mapped over devices: `(density, starting noise (n, *shape)), params -> (n, *shape)`."""

        def one(item: tuple[methods.GuidedDensity, jax.Array], params: Any) -> jax.Array:
            density, x = item
            return self.sample(methods.guided_eps(self.backbone, params, self.schedule, density), x)

        return devices.one_by_one(one, num_shared=1)

    def sample(self, eps_fn: EpsFn, x: jax.Array) -> jax.Array:
        """Samples from noise `x` (B, *shape) by DDIM, as the configuration has it."""
        return ddim(eps_fn, self.schedule, x, **self.config.sampling.ddim_options)

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
    config, dataset, network, scheduler = options.resolve(config)
    schedule = scheduler.schedule()
    with about("config.network."):
        backbone = (
            backbone_lib.mixture(schedule)
            if network is None
            else backbone_lib.unet(network, schedule, scheduler.prediction_type)
        )
    queries = own_queries(query_paths, dataset.shape, config.seed) if query_paths else held_out_queries(config, dataset)
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
    return Run(config, workdir, dataset, scheduler, schedule, network, backbone, queries)


@contextlib.contextmanager
def opened(config: config_lib.Config, workdir: pathlib.Path, query_paths: Sequence[str]) -> Iterator[Run]:
    """What `prepare` gives, in a workdir locked by this process and bound to this configuration and its queries.

    Raises:
      UserError: as `prepare`, and for a workdir that cannot be written, is in use, or was made with others, or
        that processes do not share.
    """
    run = prepare(config, workdir, query_paths)
    config = run.config
    crcs = [f"{query.crc:08x}" for query in run.queries]
    hosts.require_alike(data=run.dataset.fingerprint[:12], queries=storage.digest(crcs)[:12])
    storage.writable(workdir)
    with checkpoints.locked(workdir) if hosts.first() else contextlib.nullcontext():
        hosts.require_shared(workdir)
        content = {
            "config": config_lib.as_dict(config),
            "data": run.dataset.fingerprint,
            # With their places: results are kept by place, and two pictures may have one name.
            "queries": {
                f"{i:04d} {query.name}": crc for i, (query, crc) in enumerate(zip(run.queries, crcs, strict=True))
            },
        }
        begun = (workdir / "config.json").exists()
        workdir_lib.bind(workdir, content)
        if begun and hosts.first():  # else nothing there is a run's
            checkpoints.sweep(workdir)
        yield run


def held_out_queries(config: config_lib.Config, dataset: Dataset) -> tuple[Query, ...]:
    """`num_queries` query pictures of held-out compositions: each once in an order drawn by the seed, then again.

    With `per_class`, as many of each; with `seeds`, all of them under each of these.
    """
    held_out = dataset.split.held_out
    if not held_out:
        raise UserError("this configuration has no pictures of its own: give --query=PICTURE.")
    settings = config.evaluate
    count = settings.per_class * len(held_out) or settings.num_queries
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    taken = [  # each composition's pictures at once: for some data, each number of them compiles a program
        dataset.queries(held_out[j], -(-(count - place) // len(order))) for place, j in enumerate(order[:count])
    ]
    queries = []
    for i in range(count):
        turn, place = divmod(i, len(order))
        composition = held_out[order[place]]
        name = compositions.title(dataset.split.factors, composition) + (f" ({turn + 1})" if turn else "")
        image = np.asarray(taken[place][turn])
        queries.append(Query(name, image, tuple(composition), f"{dataset.name}, query part", config.seed))
    again = [
        dataclasses.replace(q, name=f"{q.name}, seed {seed}", seed=seed) for seed in settings.seeds for q in queries
    ]
    return tuple(again or queries)


def own_queries(paths: Sequence[str], shape: tuple[int, ...], seed: int) -> tuple[Query, ...]:
    """The user's own pictures, about which nothing else is known."""
    if len(shape) != 3:
        raise UserError("--query gives a picture, and this configuration's data are points: leave --query out.")
    queries = []
    for path in paths:
        image, warning = pictures.read_query(path, shape)
        if warning is not None:
            console.warn(warning)
        queries.append(Query(short(pathlib.Path(path).name), image, None, short(path), seed))
    return tuple(queries)
