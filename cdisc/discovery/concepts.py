"""Concept discovery: from one picture to the teacher that represents its class (arXiv 2605.07078, section 3)."""

import collections
import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule
from cdisc.discovery import algebra, modes, poe, selection, sharding
from cdisc.discovery import covariance as covariance_lib
from cdisc.errors import is_count, require_array, require_known, require_positive
from cdisc.keys import named

ASCENTS: tuple[str, ...] = ("mean_shift", "adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoveryOptions:
    """Everything about discovery that is fixed before the query is seen. Hashable: a static argument of `jax.jit`.

    The defaults make at most 2,720 evaluations of the network a query (`max_evaluations`).

    Attributes:
      timesteps: noise levels at which modes are sought, each in 1..T.
      starts_per_t: chains at each noise level.
      rounds: parts of these chains that are climbed one after the other, each merged with what the earlier ones found.
        Bounds the memory: a chain takes five pictures besides those in `lanes`.
      start_mode: where they start: "query", "hybrid" or "random" (`modes.starts`).
      ascent: "mean_shift", or "adam" (the paper's).
      learning_rate: step of Adam, in noisy space; mean shift has none.
      max_steps: evaluations that a chain may use.
      tolerance: a chain is done when the root mean square of its `eps` is below this.
      max_residual: a chain that ended above this found no stationary point.
      lanes: pictures evaluated together; bounds the memory.
      merge_radius: root mean square distance in clean space below which two modes are one.
      capacity: modes kept.
      curvature_iterations: Jacobian products spent on telling a mode from a saddle.
      max_curvature: points whose largest curvature, in units of `1 / (1 - abar_t)`, is not below this are saddles and
        not candidates; `inf` keeps them.
      probes: Jacobian products spent on each variance.
      estimator: "lattice" or "hutchinson" (`covariance.jacobian_diagonal`).
      covariance: "posterior", "laplace" or "deconvolved" (`covariance.variance`).
      delta: the normalised Jacobian diagonal is at most 1 - delta; "posterior" does without.
      floor: smallest variance of an expert at every noise level, for pictures in [-1, 1].
      num_experts: K, the most experts picked.
      tau: temperature of the experts' ownership.
      one_per_t: whether at most one expert of each noise level is picked. Low-noise experts copy the query and win on
        likelihood.
      background_mean: mean of the background that every expert must beat.
      background_variance: its variance. The background is also the teacher when no expert beats it.
      hierarchy: noise levels through which the modes are then followed (`hierarchy.follow`), each in 1..T; () follows
        none.

    Raises:
      ValueError: for a value that cannot be run, naming the field.
    """

    timesteps: tuple[int, ...] = (50, 100, 150, 200, 250, 300, 350, 400)
    starts_per_t: int = 6
    rounds: int = 1
    start_mode: modes.StartMode = "hybrid"
    ascent: str = "mean_shift"
    learning_rate: float = 0.1
    max_steps: int = 40
    tolerance: float = 0.005
    max_residual: float = 0.05
    lanes: int = 16
    merge_radius: float = 0.1
    capacity: int = 32
    curvature_iterations: int = 8
    max_curvature: float = 0.0
    probes: int = 16
    estimator: covariance_lib.Estimator = "lattice"
    covariance: covariance_lib.Covariance = "posterior"
    delta: float = 1e-3
    floor: float = 2e-3
    num_experts: int = 3
    tau: float = 0.5
    one_per_t: bool = False
    background_mean: float = 0.0
    background_variance: float = 1.0
    hierarchy: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be run; lists become tuples."""
        for field in ("timesteps", "hierarchy"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, allowed in (
            ("start_mode", modes.START_MODES),
            ("ascent", ASCENTS),
            ("estimator", covariance_lib.ESTIMATORS),
            ("covariance", covariance_lib.COVARIANCES),
        ):
            require_known(field, getattr(self, field), allowed)
        require_positive(
            starts_per_t=self.starts_per_t,
            rounds=self.rounds,
            max_steps=self.max_steps,
            lanes=self.lanes,
            capacity=self.capacity,
            curvature_iterations=self.curvature_iterations,
            probes=self.probes,
            num_experts=self.num_experts,
        )
        if self.starts_per_t % self.rounds:
            raise ValueError(
                f"rounds is {self.rounds}: the {self.starts_per_t} chains of starts_per_t cannot be divided into so "
                "many equal parts."
            )
        for field in ("learning_rate", "max_residual", "merge_radius", "floor", "tau", "background_variance"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}: use a positive number.")
        for field in ("tolerance", "max_curvature", "background_mean"):
            if math.isnan(getattr(self, field)):
                raise ValueError(f"{field} is nan: use a number.")
        if not 0 < self.delta < 0.5:
            raise ValueError(f"delta is {self.delta}: use a number between 0 and 0.5.")
        if not self.timesteps or not all(map(is_count, self.timesteps)):
            raise ValueError(f"timesteps is {self.timesteps}: name at least one timestep, each from 1 to T.")
        if not all(map(is_count, self.hierarchy)):
            raise ValueError(f"hierarchy is {self.hierarchy}: name timesteps from 1 to T, or none.")
        for field in ("timesteps", "hierarchy"):
            repeated = [t for t, times in collections.Counter(getattr(self, field)).items() if times > 1]
            if repeated:
                raise ValueError(f"{field} has {repeated[0]} more than once: name each timestep once.")

    @property
    def chains(self) -> int:
        """The chains of a round, at all noise levels."""
        return len(self.timesteps) * self.starts_per_t // self.rounds

    @property
    def max_evaluations(self) -> int:
        """The most evaluations of the network that one query can take on one device; a Jacobian product counts as one.

        Devices that share a query each fill up their last batch, which may add some.
        """
        lanes = min(self.lanes, self.chains)
        ascent = self.rounds * math.ceil(self.chains / lanes) * lanes * self.max_steps
        lanes = min(self.lanes, self.capacity)
        rows = math.ceil(self.capacity / lanes) * lanes
        return ascent + rows * (1 + self.curvature_iterations + self.probes)


@flax.struct.dataclass
class DiscoveryInfo:
    """What the discovery of one query took, and what it left out.

    Attributes:
      chains: () int32, chains run.
      unconverged: () int32, of them, those whose residual was not below the tolerance after all of their steps.
      dropped: () int32, those that were counted in no basin (`modes.MergeInfo`).
      leaders_dropped: () int32, distinct points for which the pool had no room.
      saddles: () int32, points of the pool that were no candidates for their curvature.
      clipped_below: () share of the entries of the pool's variances that are `floor` (`covariance.ClipInfo`).
      clipped_above: () the share that is bounded by `delta`.
      experts_clipped_below: () the first share among the picked experts alone; 0 if there are none.
      experts_clipped_above: () the second one.
      nfe: () int32, evaluations of the network made, idle lanes included; a Jacobian product counts as one. It is the
        only number that depends on how many devices share the work.
    """

    chains: jax.Array
    unconverged: jax.Array
    dropped: jax.Array
    leaders_dropped: jax.Array
    saddles: jax.Array
    clipped_below: jax.Array
    clipped_above: jax.Array
    experts_clipped_below: jax.Array
    experts_clipped_above: jax.Array
    nfe: jax.Array


@flax.struct.dataclass
class Discovery:
    """What was found in one query.

    Attributes:
      pool: The N distinct stationary points, with their certificates.
      experts: The Gaussians around these points, mean and variance (N, *shape).
      selection: The K picks.
      ownership: (K, *shape), how much of each entry each pick owns (`poe.ownership`).
      teacher: Their product: the density that represents the query's class, mean and variance (*shape).
      info: What it took, and what was left out.
    """

    pool: modes.ModePool
    experts: Gaussian
    selection: selection.Selection
    ownership: jax.Array
    teacher: Gaussian
    info: DiscoveryInfo

    @property
    def concepts(self) -> algebra.Concepts:
        """The picks, with what they own; not under `jax.jit`: how many they are is part of the answer."""
        rows = np.asarray(self.selection.indices)[np.asarray(self.selection.mask)]
        return algebra.Concepts(jax.tree.map(lambda leaf: leaf[rows], self.experts), self.ownership[: len(rows)])


def kernel(schedule: Schedule, options: DiscoveryOptions) -> modes.Kernel:
    """The ascent that the options name."""
    if options.ascent == "mean_shift":
        return modes.mean_shift(schedule)
    return modes.adam(schedule, options.learning_rate)


def discover(
    eps_fn: EpsFn,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    options: DiscoveryOptions,
    axis_name: str | None = None,
) -> Discovery:
    """Finds the modes around a query, gives each a Gaussian, picks the few that explain it, and multiplies them.

    A pure function: jit a function of the parameters that builds `eps_fn` inside; `options` is static.

    Args:
      eps_fn: The unconditional noise prediction.
      schedule: The noise schedule.
      query: (*shape), the picture.
      key: Random key.
      options: Everything else.
      axis_name: Over whose devices the chains, the modes and the candidates are sharded (`sharding`), to the same
        result except for rounding: a device with fewer rows than `options.lanes` evaluates that many at once.

    Raises:
      TypeError: if the query is not float32, or the key is no key.
      ValueError: for a query with a batch axis, and for timesteps beyond the schedule.
    """
    require_array("query", query, "float32", (1, 2, 3), "one float32 picture (H, W, C) or point (d,), without a batch")
    if max(options.timesteps) > schedule.num_timesteps:
        raise ValueError(
            f"timesteps has {max(options.timesteps)}, but the schedule ends at {schedule.num_timesteps}: "
            "use timesteps up to that."
        )
    query = sharding.varying(query, axis_name)
    pool, (chains, unconverged, dropped, leaders_dropped, ascent_nfe) = _find(
        eps_fn, schedule, query, named(key, "starts"), options, axis_name
    )
    pool, u, linearise_nfe = covariance_lib.linearise(
        eps_fn,
        schedule,
        pool,
        named(key, "jacobian"),
        curvature_iterations=options.curvature_iterations,
        probes=options.probes,
        estimator=options.estimator,
        lanes=options.lanes,
        axis_name=axis_name,
    )
    variance, clipped = covariance_lib.variance(
        schedule, u, pool.t, kind=options.covariance, delta=options.delta, floor=options.floor
    )
    experts = Gaussian(mean=pool.m, variance=variance)
    picks, ownership, teacher = assemble(query, pool, experts, options, axis_name)
    picked = jax.tree.map(lambda leaf: leaf[picks.indices], clipped)
    info = DiscoveryInfo(
        chains=chains,
        unconverged=unconverged,
        dropped=dropped,
        leaders_dropped=leaders_dropped,
        saddles=jnp.sum(pool.mask & ~_candidates(pool, options), dtype=jnp.int32),
        clipped_below=_share(clipped.below, pool.mask),
        clipped_above=_share(clipped.above, pool.mask),
        experts_clipped_below=_share(picked.below, picks.mask),
        experts_clipped_above=_share(picked.above, picks.mask),
        nfe=ascent_nfe + linearise_nfe,
    )
    return Discovery(pool, experts, picks, ownership, teacher, info)


def _find(
    eps_fn: EpsFn,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    options: DiscoveryOptions,
    axis_name: str | None,
) -> tuple[modes.ModePool, tuple[jax.Array, ...]]:
    """The stationary points around a query, and the first four counts of `DiscoveryInfo` with the evaluations made."""
    timesteps = jnp.asarray(options.timesteps, jnp.int32)

    def climb(
        starts: tuple[jax.Array, jax.Array], mask: jax.Array
    ) -> tuple[modes.Chains, tuple[jax.Array, jax.Array, jax.Array]]:
        chains, info = modes.ascend(
            eps_fn,
            *starts,
            kernel=kernel(schedule, options),
            max_steps=options.max_steps,
            tolerance=options.tolerance,
            lanes=options.lanes,
            count=jnp.sum(mask),
        )
        ran = info.steps > 0
        counts = (jnp.sum(ran, dtype=jnp.int32), jnp.sum(ran & ~info.converged, dtype=jnp.int32))
        return chains, (*counts, info.nfe)

    def one_round(carry: tuple[modes.ModePool, jax.Array], index: jax.Array) -> tuple[Any, None]:
        found, counts = carry
        per_t, mode = options.starts_per_t // options.rounds, options.start_mode
        x, t = modes.starts(schedule, named(key, "round", index), query, timesteps, per_t, mode, index, options.rounds)
        chains, (ran, unconverged, nfe) = sharding.map_rows(climb, (x, t), jnp.ones(t.shape, bool), axis_name)
        radius, most = options.merge_radius, options.max_residual
        found, left = modes.merge(chains, schedule, t, radius, options.capacity, max_residual=most, found=found)
        return (found, counts + jnp.stack([ran, unconverged, left.dropped, left.leaders_dropped, nfe])), None

    begin = sharding.varying_as((modes.empty_pool(options.capacity, query), jnp.zeros(5, jnp.int32)), query)
    (pool, counts), _ = jax.lax.scan(one_round, begin, jnp.arange(options.rounds))
    return pool, tuple(counts)


def _candidates(pool: modes.ModePool, options: DiscoveryOptions) -> jax.Array:
    """Which points of a pool may be picked: (N,) bool."""
    return pool.mask & (pool.curvature < options.max_curvature)


def _share(entries: jax.Array, mask: jax.Array) -> jax.Array:
    """The share of `entries` (N, *shape) that hold, in the rows of `mask` (N,): (); 0 without any."""
    rows = jnp.mean(entries.reshape(entries.shape[0], -1), axis=1)
    return jnp.sum(jnp.where(mask, rows, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def assemble(
    query: jax.Array,
    pool: modes.ModePool,
    experts: Gaussian,
    options: DiscoveryOptions,
    axis_name: str | None = None,
) -> tuple[selection.Selection, jax.Array, Gaussian]:
    """Selection and product alone: no evaluations, so that options can be compared on one pool.

    Returns:
      The picks, their ownership of each entry, and the teacher, as in `Discovery`.
    """
    background = Gaussian(
        mean=jnp.full_like(query, options.background_mean), variance=jnp.full_like(query, options.background_variance)
    )
    picks, ownership = algebra.explain(
        query,
        experts,
        background,
        num_experts=options.num_experts,
        tau=options.tau,
        candidates=_candidates(pool, options),
        t=pool.t if options.one_per_t else None,
        axis_name=axis_name,
    )
    selected = jax.tree.map(lambda leaf: leaf[picks.indices], experts)
    return picks, ownership, poe.product(selected, ownership, background)
