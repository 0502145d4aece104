"""ColorMNIST: a handwritten digit in one colour on a background of another (arXiv 2605.07078, section 4.1).

A composition is (digit, digit colour, background). The exact RGB values of the paper are not published: the palette is
configuration. Pictures are rendered when they are drawn, so that training data are a pure function of a key.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import errors
from cdisc.data import Dataset, compositions, digits
from cdisc.keys import named

SHAPE = (32, 32, 3)
FACTOR_NAMES = ("digit", "digit_colour", "background")
_PAD = 2


@flax.struct.dataclass
class ColorMNIST:
    """The uniform distribution over `compositions`, and given one of them over the pictures of its digit.

    Attributes:
      digits: (N, 28, 28) uint8, sorted by label.
      starts: (11,) int32; the pictures of value v are `digits[starts[v]:starts[v + 1]]`.
      compositions: (C, 3) int32, the class table: indices of digit, digit colour and background.
      foregrounds: (num digit colours, 3) float32, RGB in 0..1.
      backgrounds: (num backgrounds, 3) float32, RGB in 0..1.
    """

    digits: jax.Array
    starts: jax.Array
    compositions: jax.Array
    foregrounds: jax.Array
    backgrounds: jax.Array


def render(digit: jax.Array, foreground: jax.Array, background: jax.Array) -> jax.Array:
    """Blends the foreground over the background by the digit's ink.

    Args:
      digit: (..., 28, 28) uint8.
      foreground: (..., 3) RGB in 0..1, the same leading axes.
      background: (..., 3) RGB in 0..1, the same leading axes.

    Returns:
      (..., 32, 32, 3) float32 in [-1, 1].
    """
    margins = [(0, 0)] * (digit.ndim - 2) + [(_PAD, _PAD)] * 2
    ink = jnp.pad(digit, margins)[..., None].astype(jnp.float32) / 255.0
    foreground, background = foreground[..., None, None, :], background[..., None, None, :]
    return 2.0 * (background + (foreground - background) * ink) - 1.0


@jax.jit
def _render_rows(data: ColorMNIST, rows: jax.Array, attributes: jax.Array) -> jax.Array:
    """Renders the digits at `rows` (B,) with the colours of `attributes` (B, 3)."""
    return render(data.digits[rows], data.foregrounds[attributes[:, 1]], data.backgrounds[attributes[:, 2]])


def draw_rows(starts: jax.Array, key: jax.Array, values: jax.Array) -> jax.Array:
    """For each value v (B,) one of its rows, those from `starts[v]` to below `starts[v + 1]`, uniformly."""
    return jax.random.randint(key, values.shape, starts[values], starts[values + 1])


@functools.partial(jax.jit, static_argnums=2)
def train_batch(data: ColorMNIST, key: jax.Array, batch_size: int, places: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Some pictures of a batch, of which each is of a class drawn uniformly, then of a digit drawn uniformly.

    Args:
      data: The distribution.
      key: The only source of randomness.
      batch_size: B.
      places: (n,) which of the B.

    Returns:
      Pictures (n, 32, 32, 3) float32 in [-1, 1] and labels (n,) int32, indices into `data.compositions`.
    """
    label_key, row_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (batch_size,), 0, data.compositions.shape[0])
    attributes = data.compositions[labels]
    rows = draw_rows(data.starts, row_key, attributes[:, 0])
    return _render_rows(data, rows[places], attributes[places]), labels[places]


def labelled_batch(data: ColorMNIST, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draws a batch over ALL compositions, held-out ones included: for the judge, never for the denoiser.

    Args:
      data: The digits and the palette; its class table is not used.
      key: The only source of randomness.
      batch_size: B.

    Returns:
      Pictures (B, 32, 32, 3) float32 in [-1, 1] and their attributes (B, 3) int32.
    """
    row_key, *keys = jax.random.split(key, 4)
    sizes = (digits.NUM_VALUES, data.foregrounds.shape[0], data.backgrounds.shape[0])
    attributes = jnp.stack([jax.random.randint(k, (batch_size,), 0, n) for k, n in zip(keys, sizes, strict=True)], -1)
    return _render_rows(data, draw_rows(data.starts, row_key, attributes[:, 0]), attributes), attributes


def pictures(data: ColorMNIST, composition: compositions.Composition, n: int) -> np.ndarray:
    """Fixed pictures of one composition, each of a different handwritten digit.

    Each composition goes through the pictures of its digit in an order of its own (by SHA-256), so that compositions
    that share a digit begin with different handwriting.

    Args:
      data: The digits and the palette.
      composition: Indices of digit, digit colour and background; any, trained or not.
      n: How many pictures.

    Returns:
      (n, 32, 32, 3) float32 in [-1, 1].

    Raises:
      UserError: If there are fewer than `n` pictures of the digit.
    """
    value = composition[0]
    first, end = int(data.starts[value]), int(data.starts[value + 1])
    if n > end - first:
        raise errors.UserError(
            f"{n} different pictures of the digit {value} are wanted and this part of the data has "
            f"{end - first}: ask for fewer, or read a larger digit source."
        )
    name = ",".join(str(int(index)) for index in composition)
    rows = first + np.asarray(compositions.order(name, end - first)[:n], np.int32)
    attributes = np.tile(np.asarray(composition, np.int32), (n, 1))
    return np.asarray(_render_rows(data, jnp.asarray(rows), jnp.asarray(attributes)))


def palette(colours: Mapping[str, Any], field: str) -> dict[str, tuple[int, int, int]]:
    """Checks a palette and sorts it by name: a `ConfigDict` does not keep the order in which it was written.

    Args:
      colours: RGB in 0..255 by name.
      field: of `config.data`, for messages.

    Raises:
      UserError: If there is none, one is no colour, or two are the same.
    """
    found: dict[str, tuple[int, int, int]] = {}
    for name, colour in sorted(colours.items()):
        rgb = tuple(colour)
        if len(rgb) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in rgb):
            raise errors.UserError(f"config.data.{field}.{name} is {rgb}: write three whole numbers from 0 to 255.")
        for other, taken in found.items():
            if taken == rgb:
                raise errors.UserError(f"config.data.{field}.{name} is the same colour as {other}: give each its own.")
        found[name] = rgb
    if not found:
        raise errors.UserError(f"config.data.{field} names no colour: give at least one name with three numbers.")
    return found


def _container(part: digits.Digits, table: np.ndarray, foregrounds: np.ndarray, backgrounds: np.ndarray) -> ColorMNIST:
    counts = np.bincount(part.labels, minlength=digits.NUM_VALUES)
    return ColorMNIST(
        digits=jnp.asarray(part.images),
        starts=jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
        compositions=jnp.asarray(table, jnp.int32),
        foregrounds=jnp.asarray(foregrounds, jnp.float32),
        backgrounds=jnp.asarray(backgrounds, jnp.float32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which digits, in which colours, and what is held out. The paper does not publish its palette: this one is ours.

    Attributes:
      source: "bundled", 10,000 digits that come with cdisc; "idx" or "tfds" read your own MNIST from `root`.
      root: the folder of your own.
      seed: of the partition into training, query and reference digits.
      digit_colours: RGB in 0..255 by name.
      backgrounds: the same.
      held_out: partial assignments such as "digit_colour=cyan background=deep_red" (`compositions.parse`); a factor
        left out means all of its values.
    """

    source: str = "bundled"
    root: str = ""
    seed: int = 0
    digit_colours: dict[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {
            "yellow": (255, 225, 25),
            "green": (60, 200, 75),
            "cyan": (70, 220, 240),
            "pink": (250, 120, 200),
        }
    )
    backgrounds: dict[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {
            "deep_red": (120, 0, 20),
            "navy": (0, 0, 110),
            "dark_purple": (75, 0, 110),
            "dark_brown": (85, 50, 15),
        }
    )
    held_out: tuple[str, ...] = (
        "digit_colour=cyan background=deep_red",
        "digit_colour=green background=navy",
        "digit_colour=pink background=dark_purple",
        "digit_colour=yellow background=dark_brown",
    )


def split_of(config: Options) -> compositions.CompositionSplit:
    """Which digits are trained, without the pictures.

    Raises:
      UserError: if the palette or the split cannot be used.
    """
    palettes = (palette(config.digit_colours, "digit_colours"), palette(config.backgrounds, "backgrounds"))
    values = (tuple(map(str, range(digits.NUM_VALUES))), *map(tuple, palettes))
    return compositions.split(compositions.Factors(FACTOR_NAMES, values), tuple(config.held_out))


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes.

    The denoiser learns from training digits in trained compositions. Queries show query digits and references show
    reference digits. The judge learns from training digits in all compositions, since it must recognise held-out ones,
    and is validated on query digits; no judge sees a reference.

    Args:
      config: Which.

    Returns:
      The data set.

    Raises:
      UserError: If the source, the palette or the split cannot be used.
    """
    source = digits.load(config.source, config.root)
    parts = digits.partition(source, config.seed)
    for name, part in parts._asdict().items():
        counts = np.bincount(part.labels, minlength=digits.NUM_VALUES)
        if not counts.all():
            raise errors.UserError(
                f"the digit source leaves no picture of {int(counts.argmin())} for the {name} part: give a larger one."
            )
    foregrounds = palette(config.digit_colours, "digit_colours")
    backgrounds = palette(config.backgrounds, "backgrounds")
    split = split_of(config)
    table = np.asarray(split.trained, np.int32)
    compositions.assert_no_held_out(split, table)
    palettes = [np.asarray(list(p.values()), np.float32) / np.float32(255.0) for p in (foregrounds, backgrounds)]
    train, query, reference = (_container(part, table, *palettes) for part in parts)
    draw_labelled = jax.jit(labelled_batch, static_argnums=2)

    def labelled(part: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if part not in ("train", "query"):
            raise ValueError(f'part is "{part}": a judge may learn from "train" and be validated on "query"')
        images, attributes = draw_labelled(train if part == "train" else query, named(jax.random.key(seed), part), n)
        return np.asarray(images), np.asarray(attributes)

    identity = [digits.fingerprint(source), config.seed, dataclasses.asdict(split), foregrounds, backgrounds]
    return Dataset(
        name="colormnist",
        shape=SHAPE,
        split=split,
        train=train,
        train_batch=train_batch,
        queries=functools.partial(pictures, query),
        references=functools.partial(pictures, reference),
        labelled=labelled,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )
