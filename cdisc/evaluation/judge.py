"""The judge: which attributes a picture shows, and the feature space in which sets of pictures are compared.

No pretrained vision network comes with cdisc, so the judge is a small classifier with one head for each factor.
It is trained on real pictures only, never on samples, and on EVERY combination of the factors' values that there are
other pictures of, the held-out ones included: it must recognise what the diffusion network never saw, and a judge with
the network's own blind spots would find fault with every success. It shares no weights with the network. Train it on
the training digits, measure it on the query digits, and keep the reference digits for precision and recall alone.

There are two augmentations, both mild: Gaussian noise of a random scale, because samples carry a little noise that real
pictures lack and the verdict must not depend on it; and shifts of a few pixels, without which thousands of pictures
leave a classifier at about 98% of the digits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cdisc.keys import named
from cdisc.networks.unet import space_to_depth

Params = Any
"""A pytree of arrays: the parameters of `JudgeNetwork`."""

LabelledBatch = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
"""`batch(data, key)`: real pictures (B, H, W, C) and their value indices (B, F), a pure function of both arguments."""


@flax.struct.dataclass
class Judge:
    """All that the evaluation asks of a judge; a trained classifier and an exact rule both provide it.

    Attributes:
      factors: the F names of the factors, in the order of the heads.
      predict: pictures (N, *shape) to one array of logits (N, number of values) for each factor.
      features: pictures (N, *shape) to the space (N, D) of precision, recall and KID.
    """

    factors: tuple[str, ...] = flax.struct.field(pytree_node=False)
    predict: Callable[[jax.Array], tuple[jax.Array, ...]] = flax.struct.field(pytree_node=False)
    features: Callable[[jax.Array], jax.Array] = flax.struct.field(pytree_node=False)


class JudgeNetwork(nn.Module):
    """A convolutional classifier with one head for each factor.

    Space to depth by 2, one convolution, then strided convolutions down to 4 x 4, then a dense layer. At 32 x 32 with
    heads of 10, 4 and 4 values it has 125 thousand parameters.

    Attributes:
      num_values: the number of values of each factor.
      width: channels of the first convolution; the later ones have twice as many.
      num_features: D, the size of the penultimate layer.
    """

    num_values: tuple[int, ...]
    width: int = 32
    num_features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Logits of each factor (B, number of values) and features (B, D), of pictures `x` (B, H, W, C).

        A feature vector has mean 0 and mean square 1 over its D entries: the scale of distances does not depend on how
        long the judge was trained, nor does that of the kernel in KID.
        """
        # The first convolution then costs a quarter and loses nothing.
        x = nn.relu(nn.Conv(self.width, (3, 3))(space_to_depth(x, 2)))
        while min(x.shape[1:3]) > 4:
            x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=(2, 2))(x))
        x = nn.Dense(self.num_features)(x.reshape(x.shape[0], -1))
        features = nn.LayerNorm(use_scale=False, use_bias=False)(nn.relu(x))
        return tuple(nn.Dense(n)(features) for n in self.num_values), features


def init(network: JudgeNetwork, key: jax.Array, shape: tuple[int, ...]) -> Params:
    """Fresh parameters for pictures of `shape` (H, W, C), H and W even.

    Examples:
      >>> weights = jax.jit(init, static_argnums=(0, 2))(classifier, key, (4, 4, 3))
      >>> jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, seeing)
      True
    """
    return network.init(key, jnp.zeros((1, *shape)))["params"]


def augment(key: jax.Array, images: jax.Array, *, noise: float, max_shift: int) -> jax.Array:
    """The pictures (B, H, W, C), shifted together and noised each on its own.

    Args:
      key: a random key.
      images: (B, H, W, C) in [-1, 1].
      noise: each picture's noise has a standard deviation drawn uniformly from [0, noise].
      max_shift: each axis rolls by a whole number of pixels drawn uniformly from -max_shift to max_shift. What leaves
        on one side enters on the other, so keep it within the margin around the object. One draw serves the whole
        batch: a shift for each picture is a gather, which costs as much as the network's forward pass.

    Examples:
      >>> augment(key, pictures, noise=0.1, max_shift=1).shape
      (2, 4, 4, 3)
    """
    shift = jax.random.randint(named(key, "shift"), (2,), -max_shift, max_shift + 1)
    scales = jax.random.uniform(named(key, "scales"), (images.shape[0], 1, 1, 1), maxval=noise)
    return jnp.roll(images, shift, axis=(1, 2)) + scales * jax.random.normal(named(key, "noise"), images.shape)


def loss(network: JudgeNetwork, params: Params, images: jax.Array, attributes: jax.Array) -> jax.Array:
    """Cross entropy summed over factors, averaged over pictures; `attributes` (B, F) are value indices.

    Examples:
      >>> jax.jit(loss, static_argnums=0)(classifier, seeing, pictures, jnp.array([[0, 2], [1, 0]])).shape
      ()
    """
    logits, _ = network.apply({"params": params}, images)
    heads = [
        optax.softmax_cross_entropy_with_integer_labels(head, attributes[:, f]).mean() for f, head in enumerate(logits)
    ]
    return sum(heads[1:], start=heads[0])


def train(
    network: JudgeNetwork,
    params: Params,
    batch: LabelledBatch,
    data: Any,
    key: jax.Array,
    *,
    steps: int = 1000,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    noise: float = 0.1,
    max_shift: int = 2,
) -> tuple[Params, jax.Array]:
    """Trains the judge: AdamW, its learning rate warmed up over a twentieth of the steps and annealed by a cosine.

    One compiled step is called `steps` times. A `lax.scan` over the steps would be one call, but XLA's CPU backend runs
    the gradient of a convolution inside a loop about 25 times slower than outside it.

    Args:
      network: the classifier.
      params: where to start, from `init`.
      batch: draws labelled real pictures.
      data: what `batch` draws from; an argument and not part of `batch`, so that it is not a constant of the program.
      key: a random key.
      steps: number of batches.
      learning_rate: its peak.
      weight_decay: decoupled from the gradient.
      noise: see `augment`.
      max_shift: see `augment`.

    Returns:
      The parameters, and the loss of each step (steps,).

    Examples:
      >>> data = Labelled(pictures, jnp.array([[0, 2], [1, 0]]))
      >>> seeing, losses = train(classifier, seeing, draw, data, key, steps=2)
      >>> losses.shape
      (2,)
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(steps // 20, 1), max(steps, 2))
    optimizer = optax.adamw(schedule, weight_decay=weight_decay)

    @jax.jit
    def step(
        params: Params, state: optax.OptState, data: Any, key: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        images, attributes = batch(data, named(key, "batch"))
        images = augment(named(key, "augment"), images, noise=noise, max_shift=max_shift)
        value, grads = jax.value_and_grad(loss, argnums=1)(network, params, images, attributes)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    # Host arrays would be copied to the device again at every step.
    data = jax.device_put(data)
    state = optimizer.init(params)
    losses = []
    for i in range(steps):
        params, state, value = step(params, state, data, named(key, "step", i))
        losses.append(value)
    return params, jnp.stack(losses)


@flax.struct.dataclass
class Labelled:
    """Real pictures with their attributes: the `data` of `draw`.

    Attributes:
      images: (N, H, W, C) float32 in [-1, 1].
      attributes: (N, F) int32 value indices.
    """

    images: jax.Array
    attributes: jax.Array


def draw(data: Labelled, key: jax.Array, *, batch_size: int = 64) -> tuple[jax.Array, jax.Array]:
    """A `LabelledBatch`: pictures drawn from `data` uniformly, with replacement.

    Examples:
      >>> images, attributes = draw(Labelled(pictures, jnp.array([[0], [1]])), key, batch_size=3)
      >>> images.shape, attributes.shape
      ((3, 4, 4, 3), (3, 1))
    """
    rows = jax.random.randint(key, (batch_size,), 0, data.images.shape[0])
    return data.images[rows], data.attributes[rows]


def network_judge(network: JudgeNetwork, params: Params, factors: Sequence[str], *, batch_size: int = 256) -> Judge:
    """The judge that a trained network makes.

    Args:
      network: the classifier.
      params: its parameters, of any float type: they are used as float32.
      factors: the names of the heads.
      batch_size: pictures judged at once; bounds the memory, not the number of pictures.

    Examples:
      >>> sees = network_judge(classifier, seeing, ("shape", "colour"))
      >>> verdict(sees, pictures).shape
      (2, 2)
    """
    if len(factors) != len(network.num_values):
        raise ValueError(f"{len(factors)} names for a judge of {len(network.num_values)} factors")
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)

    @jax.jit
    def apply(params: Params, images: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
        def one(image: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
            return jax.tree.map(lambda y: y[0], network.apply({"params": params}, image[None]))

        return jax.lax.map(one, images, batch_size=batch_size)

    return Judge(
        factors=tuple(factors),
        predict=lambda images: apply(params, images)[0],
        features=lambda images: apply(params, images)[1],
    )


def nearest_level_judge(
    factors: Sequence[str], levels: Sequence[Sequence[float]], stds: Sequence[float] | None = None
) -> Judge:
    """The exact judge of points whose coordinate f is a Gaussian about one of `levels[f]`, as on the planar grid.

    The logits are minus the squared distances to the levels where all are as wide, the log densities where not; the
    features are the coordinates themselves.

    Args:
      factors: the names of the coordinates.
      levels: of each.
      stds: (L,) the standard deviations at the levels, the same in each coordinate; None where all are alike.

    Raises:
      ValueError: if there is not one name for each coordinate.

    Examples:
      >>> sees = nearest_level_judge(("x", "y"), ((-1.0, 1.0), (0.0, 1.0)))
      >>> verdict(sees, jnp.array([[0.9, 0.8]]))
      Array([[1, 1]], dtype=int32)
    """
    if len(factors) != len(levels):
        raise ValueError(f"{len(factors)} names for {len(levels)} coordinates")
    grid = tuple(jnp.asarray(values, jnp.float32) for values in levels)
    widths = None if stds is None else jnp.asarray(stds, jnp.float32)[None]

    def predict(points: jax.Array) -> tuple[jax.Array, ...]:
        squares = tuple(jnp.square(points[:, f, None] - values[None]) for f, values in enumerate(grid))
        if widths is None:
            return tuple(-square for square in squares)
        return tuple(-square / (2 * widths**2) - jnp.log(widths) for square in squares)

    return Judge(factors=tuple(factors), predict=predict, features=lambda points: points)


def verdict(judge: Judge, images: jax.Array) -> jax.Array:
    """The value index of each factor that the judge sees: (N, F) int32.

    Examples:
      >>> verdict(judge, jnp.array([[0.9, 0.1], [-0.8, 0.7]]))
      Array([[1, 0],
             [0, 1]], dtype=int32)
    """
    return jnp.stack([jnp.argmax(logits, axis=-1) for logits in judge.predict(images)], axis=-1).astype(jnp.int32)
