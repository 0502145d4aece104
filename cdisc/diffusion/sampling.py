"""From noise to pictures, given an eps-function: DDIM and ancestral sampling, each one `lax.scan`."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cdisc.diffusion.parameterization import EpsFn, eps_from_x0, x0_from_eps
from cdisc.diffusion.schedule import Schedule, alpha_bar_at
from cdisc.errors import require_known, require_positive
from cdisc.keys import named

SPACINGS = ("trailing", "leading", "linspace")
VARIANCES = ("fixed_small", "fixed_large")


def timesteps(
    num_timesteps: int,
    num_steps: int,
    timestep_spacing: str = "trailing",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
) -> np.ndarray:
    """Where each step of a sampler begins and where it ends: (num_steps, 2) in 0..T, the noisiest first.

    "trailing" begins at T, is even, and ends each step where the next begins. The others are those of diffusers'
    `DDIMScheduler`, timestep by timestep, in which every step is T // num_steps long even where the next begins
    elsewhere. Its "trailing" does so too, which is the same where `num_steps` divides T.

    Args:
      num_timesteps: T.
      num_steps: how many steps.
      timestep_spacing: one of `SPACINGS`.
      steps_offset: what "leading" adds to each timestep.
      set_alpha_to_one: whether the last step ends at the clean picture, t = 0, or at t = 1.

    Raises:
      ValueError: if `num_steps` is not in 1..T, or the offset leads out of the schedule.

    Examples:
      >>> timesteps(1000, 4).tolist()
      [[1000, 750], [750, 500], [500, 250], [250, 0]]
      >>> timesteps(1000, 4, timestep_spacing="leading", steps_offset=1).tolist()
      [[752, 502], [502, 252], [252, 2], [2, 0]]
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps is {num_steps}, outside 1..{num_timesteps}")
    require_known("timestep_spacing", timestep_spacing, SPACINGS)
    length = num_timesteps // num_steps
    if timestep_spacing == "trailing":
        visited = np.rint(np.linspace(num_timesteps, 0, num_steps + 1))
        begin, end = visited[:-1], visited[1:]
    else:
        if timestep_spacing == "leading":
            begin = 1.0 + steps_offset + length * np.arange(num_steps)[::-1]
        else:
            begin = 1.0 + np.rint(np.linspace(0, num_timesteps - 1, num_steps))[::-1]
        end = begin - length
    if begin[0] > num_timesteps or begin[-1] < 1:
        raise ValueError(f"steps_offset is {steps_offset}: with {num_steps} steps it leads out of 1..{num_timesteps}")
    return np.stack([begin, np.maximum(end, 0 if set_alpha_to_one else 1)], axis=1).astype(np.int32)


def _predict(
    eps_fn: EpsFn, schedule: Schedule, x: jax.Array, t: jax.Array, clip: float | None
) -> tuple[jax.Array, jax.Array]:
    """The predicted clean picture, clipped if asked, and the predicted noise."""
    eps = eps_fn(x, t)
    x0 = x0_from_eps(schedule, x, eps, t)
    return x0 if clip is None else jnp.clip(x0, -clip, clip), eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMOptions:
    """How `ddim` samples.

    Attributes:
      num_steps: of the sampler.
      clip: the predicted clean picture is clipped to [-clip, clip]; None leaves it.
      timestep_spacing: which timesteps are visited (`timesteps`).
      steps_offset: what is added to them where they are "leading".
      set_alpha_to_one: whether the last step ends at the clean picture.
      use_clipped_model_output: whether a step goes on with the noise that goes with the clipped picture, or with the
        one that was predicted, as diffusers does by default.
    """

    num_steps: int = 50
    clip: float | None = 1.0
    timestep_spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    use_clipped_model_output: bool = False

    def __post_init__(self) -> None:
        """Refuses counts below one and a range without inside."""
        require_positive(num_steps=self.num_steps)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}: use a positive number, or None.")

    @property
    def ddim_options(self) -> dict[str, Any]:
        """The arguments of `ddim`."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(DDIMOptions)}


def ddim_step(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    t: jax.Array,
    s: jax.Array,
    key: jax.Array | None = None,
    *,
    eta: float = 0.0,
    clip: float | None = None,
    use_clipped_model_output: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """One step of `ddim`, from t to the less noisy s, both (B,); the other arguments are its own.

    Returns:
      The pictures at s (B, ...), and the clean ones that were predicted at t.

    Examples:
      >>> noisier, cleaner = jnp.full(2, 400), jnp.full(2, 300)
      >>> at_300, clean = ddim_step(eps_fn, schedule, x, noisier, cleaner)
      >>> at_300.shape, clean.shape
      ((2, 2), (2, 2))
    """
    x0, eps = _predict(eps_fn, schedule, x, t, clip)
    if use_clipped_model_output and clip is not None:
        eps = eps_from_x0(schedule, x, x0, t)
    a_t, a_s = alpha_bar_at(schedule, t, x), alpha_bar_at(schedule, s, x)
    std = eta * jnp.sqrt((1.0 - a_s) / (1.0 - a_t) * (1.0 - a_t / a_s))
    following = jnp.sqrt(a_s) * x0 + jnp.sqrt(jnp.maximum(1.0 - a_s - std**2, 0.0)) * eps
    if key is not None and eta > 0:
        following = following + std * jax.random.normal(key, x.shape)
    return following, x0


def ddim(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    key: jax.Array | None = None,
    *,
    num_steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
    use_clipped_model_output: bool = False,
    timestep_spacing: str = "trailing",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
) -> jax.Array:
    """Samples by DDIM (Song et al. 2021, Eq. 12 and 16), with the names and the arithmetic of diffusers.

    Args:
      eps_fn: the prediction, guided or not.
      schedule: the forward process.
      x: (B, ...) the start at t = T, standard normal.
      key: for the noise of each step; needed if `eta > 0`.
      num_steps: evaluations of `eps_fn`.
      eta: 0 is deterministic; 1 over all T steps is ancestral sampling.
      clip: the predicted clean picture is clipped to [-clip, clip]; None leaves it.
      use_clipped_model_output: whether the noise of a step is the one that goes with the clipped picture, so that both
        make up `x`, or the predicted one, as in diffusers by default.
      timestep_spacing: which timesteps are visited (`timesteps`).
      steps_offset: see `timesteps`.
      set_alpha_to_one: see `timesteps`.

    Returns:
      (B, ...) clean pictures.

    Raises:
      ValueError: if `eta > 0` without a key, and as `timesteps`.

    Examples:
      >>> jax.jit(lambda x: ddim(eps_fn, schedule, x, num_steps=4))(x).shape
      (2, 2)
    """
    if eta > 0 and key is None:
        raise ValueError("eta > 0 draws noise and so needs a key")
    steps = timesteps(schedule.num_timesteps, num_steps, timestep_spacing, steps_offset, set_alpha_to_one)

    def step(x: jax.Array, now_next: jax.Array) -> tuple[jax.Array, None]:
        t, s = (jnp.full(x.shape[:1], value) for value in now_next)
        of_step = None if key is None else named(key, "step", now_next[0])
        clipped = use_clipped_model_output
        x, _ = ddim_step(eps_fn, schedule, x, t, s, of_step, eta=eta, clip=clip, use_clipped_model_output=clipped)
        return x, None

    return jax.lax.scan(step, x, jnp.asarray(steps))[0]


def ancestral(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    key: jax.Array,
    *,
    clip: float | None = None,
    variance_type: str = "fixed_small",
) -> jax.Array:
    """Samples by the reverse chain through all T steps (Ho et al. 2020, Eq. 6 and 7).

    Args:
      eps_fn: the prediction, guided or not.
      schedule: the forward process.
      x: (B, ...) the start at t = T, standard normal.
      key: for the noise of each step.
      clip: the predicted clean picture is clipped to [-clip, clip]; None leaves it.
      variance_type: one of `VARIANCES`: of each step, that of q(x_{t-1} | x_t, x_0) or the larger beta_t, which are
        right for data that are one point and for data that are white noise.

    Returns:
      (B, ...) clean pictures.

    Raises:
      ValueError: for another variance.

    Examples:
      >>> short = linear_beta(3, 0.1, 0.2)
      >>> ancestral(lambda x, t: 0.0 * x, short, x, key, clip=1.0).shape
      (2, 2)
    """
    require_known("variance_type", variance_type, VARIANCES)

    def step(x: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        t = jnp.full(x.shape[:1], now)
        x0, _ = _predict(eps_fn, schedule, x, t, clip)
        a_t, a_s = alpha_bar_at(schedule, t, x), alpha_bar_at(schedule, t - 1, x)
        alpha = a_t / a_s
        # The mean and variance of q(x_{t-1} | x_t, x_0).
        mean = (jnp.sqrt(a_s) * (1.0 - alpha) * x0 + jnp.sqrt(alpha) * (1.0 - a_s) * x) / (1.0 - a_t)
        variance = (1.0 - a_s) / (1.0 - a_t) * (1.0 - alpha)
        if variance_type == "fixed_large":
            variance = jnp.where(now > 1, 1.0 - alpha, 0.0)  # the last step adds no noise
        noise = jax.random.normal(named(key, "step", now), x.shape)
        return mean + jnp.sqrt(variance) * noise, None

    return jax.lax.scan(step, x, jnp.arange(schedule.num_timesteps, 0, -1))[0]
