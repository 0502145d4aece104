"""Which samples of a pool left the model's manifold, told from their own way from noise to picture."""

import jax
import jax.numpy as jnp

from cdisc.diffusion.parameterization import EpsFn
from cdisc.diffusion.sampling import ddim_step, timesteps
from cdisc.diffusion.schedule import Schedule


def ddim_with_variance(
    eps_fn: EpsFn,
    schedule: Schedule,
    x: jax.Array,
    *,
    num_steps: int,
    last: int,
    clip: float | None = None,
    use_clipped_model_output: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Samples as `sampling.ddim` makes them, and how much the predicted clean picture moved over their last steps.

    Between modes of the data the prediction wavers until late: there a sample of something that does not exist has a
    larger variance than one of a mode (Aithal et al. 2024, arXiv 2406.09358, Eq. 5).

    Args:
      eps_fn: the prediction, guided or not.
      schedule: the forward process.
      x: (B, ...) the start at t = T, standard normal.
      num_steps: evaluations of `eps_fn`.
      last: how many of them count, from the end, at least 2.
      clip: as in `sampling.ddim`.
      use_clipped_model_output: as there.

    Returns:
      The samples (B, ...), and for each the variance over its last steps, a mean over entries: (B,).

    Raises:
      ValueError: if `last` is below 2 or above `num_steps`.

    Examples:
      >>> sampler = jax.jit(lambda x: ddim_with_variance(eps_fn, schedule, x, num_steps=4, last=2))
      >>> samples, variance = sampler(x)
      >>> samples.shape, variance.shape
      ((2, 2), (2,))
    """
    if not 2 <= last <= num_steps:
        raise ValueError(f"last is {last}, outside 2..{num_steps}")

    def step(x: jax.Array, now_next: jax.Array) -> tuple[jax.Array, jax.Array]:
        t, s = (jnp.full(x.shape[:1], value) for value in now_next)
        return ddim_step(eps_fn, schedule, x, t, s, clip=clip, use_clipped_model_output=use_clipped_model_output)

    samples, path = jax.lax.scan(step, x, jnp.asarray(timesteps(schedule.num_timesteps, num_steps)))
    return samples, jnp.mean(jnp.var(path[-last:], axis=0), axis=tuple(range(1, x.ndim)))
