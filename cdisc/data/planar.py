"""Points in the plane whose two coordinates are the two factors: composition with every density known exactly.

A composition is a cell (horizontal level, vertical level); its class is a Gaussian about the two levels, whose width
in either coordinate may be the level's own: then a held-out cell is a composition in its shape, too. The trained cells
make a Gaussian mixture, which `diffusion.exact` noises in closed form, so that discovery can be watched, and checked,
without a network between it and the truth.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cdisc import errors
from cdisc.data import Dataset, compositions
from cdisc.diffusion.exact import GaussianMixture

SHAPE = (2,)
FACTOR_NAMES = ("horizontal", "vertical")
_QUERY_SEED, _REFERENCE_SEED = 0, 1


def factors(levels_x: Sequence[float], levels_y: Sequence[float]) -> compositions.Factors:
    """The two coordinates as factors; a level's name is its number, as in "horizontal=-0.6".

    Raises:
      UserError: If the levels of a coordinate are not increasing, or two of them have one name.
    """
    values = []
    for name, levels in zip(FACTOR_NAMES, (levels_x, levels_y), strict=True):
        names = tuple(f"{level:g}" for level in levels)
        if not names or any(low >= high for low, high in itertools.pairwise(levels)):
            raise errors.UserError(f"the {name} levels are {tuple(levels)}: write at least one, in increasing order.")
        if len(set(names)) != len(names):
            raise errors.UserError(f"two {name} levels are both called {names}: keep them further apart.")
        values.append(names)
    return compositions.Factors(names=FACTOR_NAMES, values=tuple(values))


def planar_mixture(
    levels_x: Sequence[float],
    levels_y: Sequence[float],
    stds: float | Sequence[float],
    split: compositions.CompositionSplit,
    *,
    held_out: bool = False,
) -> GaussianMixture:
    """The mixture of the trained cells, equally weighted, over points (2,).

    Args:
      levels_x: Lx increasing numbers.
      levels_y: Ly increasing numbers.
      stds: The standard deviation of a cell in either coordinate, or (L,) one for each level of a coordinate.
      split: Which cells are trained; component c is class c, `split.trained[c]`.
      held_out: Gives the held-out cells instead, in the order of `split.held_out`.
    """
    cells = np.asarray(split.held_out if held_out else split.trained)
    means = np.stack([np.asarray(levels_x)[cells[:, 0]], np.asarray(levels_y)[cells[:, 1]]], axis=1)
    widths = np.broadcast_to(stds, cells.shape) if np.ndim(stds) == 0 else np.asarray(stds)[cells]
    return GaussianMixture(
        weights=jnp.full((len(cells),), 1.0 / len(cells), jnp.float32),
        means=jnp.asarray(means, jnp.float32),
        variances=jnp.asarray(widths**2, jnp.float32),
    )


def train_batch(
    mixture: GaussianMixture, key: jax.Array, batch_size: int, places: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """The points (n, 2) at some places (n,) of a batch and their classes (n,) int32, which are drawn uniformly."""
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (batch_size,), 0, mixture.weights.shape[0])
    noise = jax.random.normal(noise_key, (batch_size, *SHAPE))
    points = mixture.means[labels] + jnp.sqrt(mixture.variances[labels]) * noise
    return points[places], labels[places]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The cells of a grid, and which of them are held out.

    Attributes:
      levels: of either coordinate.
      std: of a cell in either coordinate.
      widths: of the levels, in units of `std`; empty if all are 1.
      held_out: partial assignments such as "horizontal=-0.9 vertical=0.3" (`compositions.parse`); a factor left out
        means all of its values.
    """

    levels: tuple[float, ...] = (-0.9, -0.3, 0.3, 0.9)
    std: float = 0.06
    widths: tuple[float, ...] = ()
    held_out: tuple[str, ...] = (
        "horizontal=-0.9 vertical=0.3",
        "horizontal=-0.3 vertical=0.9",
        "horizontal=0.3 vertical=-0.9",
        "horizontal=0.9 vertical=-0.3",
    )

    def __post_init__(self) -> None:
        """Refuses widths that are none, or not one for each level."""
        if not 0 < self.std < float("inf"):
            raise ValueError(f"std is {self.std}: write a positive number.")
        if self.widths and (len(self.widths) != len(self.levels) or not all(0 < w < float("inf") for w in self.widths)):
            raise ValueError(
                f"widths is {self.widths}: write one positive number for each of {len(self.levels)} levels."
            )

    @property
    def stds(self) -> tuple[float, ...]:
        """The standard deviation in a coordinate, by its level."""
        return tuple(self.std * width for width in self.widths or (1.0,) * len(self.levels))


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes.

    Args:
      config: Which.

    Returns:
      The data set; its `train` is the `GaussianMixture` of the trained cells.

    Raises:
      UserError: If the levels or the split cannot be used.
    """
    levels, stds = config.levels, config.stds
    split = compositions.split(factors(levels, levels), tuple(config.held_out))
    compositions.assert_no_held_out(split, np.asarray(split.trained))

    def points(seed: int, composition: compositions.Composition, n: int) -> np.ndarray:
        """The first n points of a cell's own fixed stream."""
        stream = np.random.default_rng([seed, *composition])
        centre, widths = np.asarray(levels)[list(composition)], np.asarray(stds)[list(composition)]
        return (centre + widths * stream.standard_normal((n, 2))).astype(np.float32)

    def labelled(part: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if part not in ("train", "query"):
            raise ValueError(f'part is "{part}": a judge may learn from "train" and be validated on "query"')
        stream = np.random.default_rng([("train", "query").index(part), seed])
        attributes = stream.integers(0, len(levels), (n, 2))
        noise = stream.standard_normal((n, 2))
        points = np.asarray(levels)[attributes] + np.asarray(stds)[attributes] * noise
        return points.astype(np.float32), attributes.astype(np.int32)

    identity = [levels, stds if config.widths else config.std, dataclasses.asdict(split)]
    return Dataset(
        name="planar",
        shape=SHAPE,
        split=split,
        train=planar_mixture(levels, levels, stds, split),
        train_batch=train_batch,
        queries=lambda composition, n: points(_QUERY_SEED, composition, n),
        references=lambda composition, n: points(_REFERENCE_SEED, composition, n),
        labelled=labelled,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )
