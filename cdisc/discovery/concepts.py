"""Concept discovery: from one picture to the teacher that represents its class (arXiv 2605.07078, section 3)."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.schedule import Schedule, expand, sigma
from cdisc.discovery import algebra, modes, poe, selection, sharding
from cdisc.discovery import covariance as covariance_lib
from cdisc.discovery.curvature import newton_distance
from cdisc.errors import is_count, require_array, require_known, require_positive
from cdisc.keys import named

ASCENTS: tuple[str, ...] = ("mean_shift", "barzilai_borwein", "adam")
PART = 0.25
"""The part of `merge_radius` below which the Newton distance of a mode is, once polished."""


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
      ascent: "mean_shift"; "barzilai_borwein", which is shorter where mean shift overshoots, as it does with networks
        that are not trained well; or "adam" (the paper's).
      learning_rate: step of Adam, in noisy space; mean shift has none.
      max_steps: evaluations that a chain may use.
      tolerance: a chain is done when the root mean square of its `eps` is below this.
      max_residual: a chain that ended above this found no stationary point.
      weak_residual: the same at a noise level where all chains ended above `max_residual`. A weakly trained network
        sees noise where there is none: its `eps` of a clean picture may be 0.3 at t = 50, that of a noised one is 1.
      lanes: pictures evaluated together; bounds the memory.
      merge_radius: root mean square distance in clean space below which two modes are one.
      polish: evaluations for bringing the chains that came to rest on a flat top to the mode that it has
        (`certify`); 0 leaves them where they are. The scores of networks have flat ridges where densities have tops.
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
    weak_residual: float = 0.0
    lanes: int = 16
    merge_radius: float = 0.1
    polish: int = 2000
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
        if self.polish < 0:
            raise ValueError(f"polish is {self.polish}: use a whole number, 0 for none.")
        if self.starts_per_t % self.rounds:
            raise ValueError(
                f"rounds is {self.rounds}: the {self.starts_per_t} chains of starts_per_t cannot be divided into so "
                "many equal parts."
            )
        for field in (
            "learning_rate",
            "max_residual",
            "merge_radius",
            "floor",
            "tau",
            "background_variance",
        ):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}: use a positive number.")
        for field in ("tolerance", "weak_residual", "max_curvature", "background_mean"):
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

    def rescaled(self, given: int, last: int) -> "DiscoveryOptions":
        """These options, whose timesteps are those of `given`, for a schedule of `last` timesteps."""

        def scaled(chosen: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(dict.fromkeys(max(1, round(t * last / given)) for t in chosen))

        return dataclasses.replace(self, timesteps=scaled(self.timesteps), hierarchy=scaled(self.hierarchy))

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
        return ascent + rows * self.linearised + self.polish

    @property
    def linearised(self) -> int:
        """The most evaluations for the curvature and the variances of a mode."""
        return 1 + self.curvature_iterations + self.probes


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
      timesteps: (M,) int32, the noise levels at which modes were sought.
      smallest_residual: (M,), of the chains at each of them; infinite where none is a number.
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
    timesteps: jax.Array
    smallest_residual: jax.Array


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
    def found(self) -> bool:
        """Whether there is any mode; not under `jax.jit`. Where there is none, the teacher is only a place holder."""
        return bool(np.any(self.pool.mask))

    @property
    def concepts(self) -> algebra.Concepts:
        """The picks, with what they own; not under `jax.jit`: how many they are is part of the answer."""
        rows = np.asarray(self.selection.indices)[np.asarray(self.selection.mask)]
        return algebra.Concepts(jax.tree.map(lambda leaf: leaf[rows], self.experts), self.ownership[: len(rows)])


def or_nothing(discovery: Discovery) -> Discovery:
    """The discovery, or one without modes in the place of one that is not finite; its numbers can be computed with.

    Examples:
      >>> or_nothing(found).found
      True
    """
    teacher = discovery.teacher
    if np.isfinite(teacher.mean).all() and np.isfinite(teacher.variance).all():
        return discovery
    return dataclasses.replace(
        discovery,
        pool=dataclasses.replace(discovery.pool, mask=jnp.zeros_like(discovery.pool.mask)),
        selection=dataclasses.replace(discovery.selection, mask=jnp.zeros_like(discovery.selection.mask)),
        teacher=Gaussian(jnp.zeros_like(teacher.mean), jnp.ones_like(teacher.variance)),
    )


def kernel(schedule: Schedule, options: DiscoveryOptions) -> modes.Kernel:
    """The ascent that the options name.

    Examples:
      >>> rule = kernel(schedule, options)
      >>> moved, _ = rule.step(eps_fn(x, t), x, t, rule.init(x))
      >>> moved.shape
      (2, 2)
    """
    if options.ascent == "mean_shift":
        return modes.mean_shift(schedule)
    if options.ascent == "barzilai_borwein":
        return modes.barzilai_borwein(schedule)
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

    Examples:
      >>> found = jax.jit(discover, static_argnums=(0, 4))(eps_fn, schedule, query, key, options)
      >>> bool(jnp.abs(found.teacher.mean - jnp.array([1.0, 0.0])).max() < 0.1)
      True
    """
    require_array("query", query, "float32", (1, 2, 3), "one float32 picture (H, W, C) or point (d,), without a batch")
    if max(options.timesteps) > schedule.num_timesteps:
        raise ValueError(
            f"timesteps has {max(options.timesteps)}, but the schedule ends at {schedule.num_timesteps}: "
            "use timesteps up to that."
        )
    query = sharding.varying(query, axis_name)
    pool, smallest, counts = _find(eps_fn, schedule, query, named(key, "starts"), options, axis_name)
    chains, unconverged, dropped, leaders_dropped, ascent_nfe = counts
    pool, u, certify_nfe = certify(eps_fn, schedule, pool, named(key, "jacobian"), options, axis_name)
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
        timesteps=jnp.asarray(options.timesteps, jnp.int32),
        smallest_residual=smallest,
        saddles=jnp.sum(pool.mask & ~candidates(pool, options), dtype=jnp.int32),
        clipped_below=_share(clipped.below, pool.mask),
        clipped_above=_share(clipped.above, pool.mask),
        experts_clipped_below=_share(picked.below, picks.mask),
        experts_clipped_above=_share(picked.above, picks.mask),
        nfe=ascent_nfe + certify_nfe,
    )
    return Discovery(pool, experts, picks, ownership, teacher, info)


def _find(
    eps_fn: EpsFn,
    schedule: Schedule,
    query: jax.Array,
    key: jax.Array,
    options: DiscoveryOptions,
    axis_name: str | None,
) -> tuple[modes.ModePool, jax.Array, tuple[jax.Array, ...]]:
    """The stationary points around a query, the smallest residuals, and four counts of `DiscoveryInfo` and the nfe."""
    timesteps = jnp.asarray(options.timesteps, jnp.int32)
    climb = _climb(eps_fn, kernel(schedule, options), options)

    def one_round(carry: tuple[modes.ModePool, jax.Array, jax.Array], index: jax.Array) -> tuple[Any, None]:
        found, smallest, counts = carry
        per_t, mode = options.starts_per_t // options.rounds, options.start_mode
        x, t = modes.starts(schedule, named(key, "round", index), query, timesteps, per_t, mode, index, options.rounds)
        rows = (x, t, jnp.full(t.shape, options.tolerance), jnp.full(t.shape, options.max_steps))
        chains, (ran, unconverged, nfe) = sharding.map_rows(climb, rows, jnp.ones(t.shape, bool), axis_name)
        of_level = timesteps[:, None] == t[None]
        smallest = jnp.fmin(smallest, jnp.nanmin(jnp.where(of_level, chains.residual, jnp.nan), axis=1))
        weak = max(options.weak_residual, options.max_residual)
        most = jnp.where(smallest <= options.max_residual, options.max_residual, weak)
        found, left = modes.merge(
            chains,
            schedule,
            t,
            options.merge_radius,
            options.capacity,
            max_residual=most[jnp.argmax(of_level, axis=0)],
            found=found,
        )
        counts = counts + jnp.stack([ran, unconverged, left.dropped, left.leaders_dropped, nfe])
        return (found, smallest, counts), None

    nothing = (modes.empty_pool(options.capacity, query), jnp.full(timesteps.shape, jnp.inf), jnp.zeros(5, jnp.int32))
    begin = sharding.varying_as(nothing, query)
    (pool, smallest, counts), _ = jax.lax.scan(one_round, begin, jnp.arange(options.rounds))
    return pool, smallest, tuple(counts)


def _climb(
    eps_fn: EpsFn, kernel: modes.Kernel, options: DiscoveryOptions
) -> Callable[[tuple[jax.Array, ...], jax.Array], tuple[modes.Chains, tuple[jax.Array, ...]]]:
    """For `sharding.map_rows`: chains (x, t, tolerance) in at most so many steps; and counts of `DiscoveryInfo`."""

    def climb(rows: tuple[jax.Array, ...], mask: jax.Array) -> tuple[modes.Chains, tuple[jax.Array, ...]]:
        x, t, tolerance, max_steps = rows
        chains, info = modes.ascend(
            eps_fn,
            x,
            t,
            kernel=kernel,
            max_steps=max_steps[0],
            tolerance=tolerance,
            lanes=options.lanes,
            count=jnp.sum(mask),
        )
        ran = info.steps > 0
        counts = (jnp.sum(ran, dtype=jnp.int32), jnp.sum(ran & ~info.converged, dtype=jnp.int32))
        return chains, (*counts, info.nfe)

    return climb


class _Certifying(NamedTuple):
    """What the loop of `certify` carries: the pool, its `u`, the evaluations left, and whether it was measured."""

    pool: modes.ModePool
    u: jax.Array
    left: jax.Array
    measured: jax.Array


def certify(
    eps_fn: EpsFn,
    schedule: Schedule,
    pool: modes.ModePool,
    key: jax.Array,
    options: DiscoveryOptions,
    axis_name: str | None = None,
) -> tuple[modes.ModePool, jax.Array, jax.Array]:
    """Measures the curvature at each point of a pool, and climbs on where it says that the mode is elsewhere.

    On a flat top the residual is small everywhere, and chains come to rest apart. A point whose residual is below the
    tolerance, and whose Newton distance (`curvature.newton_distance`) is not below `PART` of the radius, climbs on with
    `modes.barzilai_borwein`; then points are merged and measured anew, until there is none or `options.polish`
    evaluations are made.

    Returns:
      The pool with its curvature, `u` of `covariance.linearise`, and the evaluations made, () int32.

    Examples:
      >>> certified = jax.jit(certify, static_argnums=(0, 4))
      >>> pool, u, evaluations = certified(eps_fn, schedule, found.pool, key, options)
      >>> bool((pool.curvature[pool.mask] < 0).all())  # modes, no saddles
      True
    """
    reach = PART * options.merge_radius
    lanes = min(options.lanes, options.capacity)

    def elsewhere(pool: modes.ModePool) -> jax.Array:
        return (pool.residual < options.tolerance) & ~(newton_distance(schedule, pool) < reach)

    def steps(pool: modes.ModePool, left: jax.Array) -> jax.Array:
        """How many the points may take so that what is left of the budget pays for the next measurement too."""
        rows = (jnp.sum(pool.mask) + lanes - 1) // lanes * lanes
        return left // jnp.maximum(rows, 1) - options.linearised

    def unfinished(carry: _Certifying) -> jax.Array:
        return ~carry.measured | (jnp.any(elsewhere(carry.pool)) & (steps(carry.pool, carry.left) > 1))

    def refine(carry: _Certifying) -> _Certifying:
        pool, left = carry.pool, carry.left
        if options.polish:
            climbing = elsewhere(pool)
            # The top may be flatter than its side, so aim closer than need be. Other points stay where they are.
            aim = 0.1 * reach * jnp.abs(pool.curvature) / sigma(schedule, pool.t)
            climb = _climb(eps_fn, modes.barzilai_borwein(schedule, options.merge_radius), options)
            mask = pool.mask & jnp.any(climbing)
            rows = (pool.x, pool.t, jnp.where(climbing, aim, jnp.inf), jnp.broadcast_to(steps(pool, left), mask.shape))
            chains, (_, _, nfe) = sharding.map_rows(climb, rows, mask, axis_name)
            x = jnp.where(expand(mask, pool.x), chains.x, pool.x)
            moved = dataclasses.replace(pool, x=x, residual=jnp.where(mask, chains.residual, pool.residual))
            none = modes.Chains(x[:0], pool.residual[:0])
            pool, _ = modes.merge(none, schedule, pool.t[:0], options.merge_radius, options.capacity, found=moved)
            left = left - nfe
        pool, u, nfe = covariance_lib.linearise(
            eps_fn,
            schedule,
            pool,
            key,
            curvature_iterations=options.curvature_iterations,
            probes=options.probes,
            estimator=options.estimator,
            lanes=options.lanes,
            axis_name=axis_name,
        )
        return _Certifying(pool, u, left - nfe, carry.measured | True)

    # Measured for the first time in the loop as well, so that there is one program for it.
    budget = jnp.asarray(options.polish + math.ceil(options.capacity / lanes) * lanes * options.linearised, jnp.int32)
    begin = _Certifying(pool, jnp.zeros_like(pool.x), budget, jnp.asarray(False))
    end = (
        jax.lax.while_loop(unfinished, refine, sharding.varying_as(begin, pool.x)) if options.polish else refine(begin)
    )
    return end.pool, end.u, budget - end.left


def candidates(pool: modes.ModePool, options: DiscoveryOptions) -> jax.Array:
    """Which points of a pool may be picked: (N,) bool.

    Examples:
      >>> bool((candidates(found.pool, options) <= found.pool.mask).all())
      True
    """
    return pool.mask & (pool.curvature < options.max_curvature)


def background_of(query: jax.Array, options: DiscoveryOptions) -> Gaussian:
    """The broad Gaussian that every pick must beat: (*shape).

    Examples:
      >>> background_of(query, options).variance
      Array([1., 1.], dtype=float32)
    """
    return Gaussian(
        mean=jnp.full_like(query, options.background_mean), variance=jnp.full_like(query, options.background_variance)
    )


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

    Examples:
      >>> assembled = jax.jit(assemble, static_argnums=3)
      >>> picks, owned, teacher = assembled(query, found.pool, found.experts, options)
      >>> bool(jnp.allclose(teacher.mean, found.teacher.mean))
      True
    """
    background = background_of(query, options)
    picks, ownership = algebra.explain(
        query,
        experts,
        background,
        num_experts=options.num_experts,
        tau=options.tau,
        candidates=candidates(pool, options),
        t=pool.t if options.one_per_t else None,
        axis_name=axis_name,
    )
    selected = jax.tree.map(lambda leaf: leaf[picks.indices], experts)
    return picks, ownership, poe.product(selected, ownership, background)
