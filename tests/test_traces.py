"""Programs are traced once: neither more steps, more chains nor another query makes Python run through them again."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion import exact, sampling, schedule
from cdisc.discovery import concepts, selection

NOISE = schedule.linear_beta(100)
MIXTURE = exact.GaussianMixture(
    weights=jnp.full((2,), 0.5), means=jnp.array([[0.0, 1.0], [1.0, 0.0]]), variances=jnp.full((2, 2), 0.01)
)


@pytest.fixture
def counted():
    """The mixture's eps-function, which fails when it is traced more than `n` times."""
    chex.clear_trace_counter()
    yield lambda n: chex.assert_max_traces(exact.mixture_eps(MIXTURE, NOISE), n=n)
    chex.clear_trace_counter()


@pytest.mark.parametrize("num_steps", [2, 50])
def test_a_sampler_traces_its_eps_function_once_whatever_its_steps(counted, num_steps):
    # Catches: a Python loop over the steps.
    eps_fn = counted(1)
    drawn = jax.jit(lambda x, key: sampling.ddim(eps_fn, NOISE, x, key, num_steps=num_steps))
    chex.assert_tree_all_finite(drawn(jnp.ones((4, 2)), jax.random.key(0)))
    chex.assert_tree_all_finite(drawn(np.zeros((4, 2), np.float32), jax.random.key(1)))


@pytest.mark.parametrize("options", [{}, {"max_steps": 80, "starts_per_t": 12, "rounds": 2, "capacity": 40}])
def test_a_discovery_is_traced_once_whatever_its_steps_and_chains(counted, options):
    # Catches: a Python loop over noise levels, chains, rounds or steps; a query that is part of the program.
    options = concepts.DiscoveryOptions(timesteps=(10, 30, 60, 90), **options)
    found = jax.jit(functools.partial(concepts.discover, counted(4), NOISE, options=options))
    for seed in range(2):
        result = found(jnp.full((2,), 0.5 + seed), jax.random.key(seed))
        chex.assert_tree_all_finite(result.teacher)
    chex.assert_shape(result.ownership, (options.num_experts, 2))


def test_the_choice_of_experts_is_one_program_whatever_their_number():
    # Catches: a Python loop over the picks.
    likelihood, b, candidates = jnp.zeros((9, 4)), jnp.zeros(4), jnp.ones(9, bool)

    def size(num_experts):
        pick = functools.partial(selection.greedy, num_experts=num_experts, candidates=candidates)
        return str(jax.make_jaxpr(pick)(likelihood, b)).count("\n")

    assert size(2) == size(8)
