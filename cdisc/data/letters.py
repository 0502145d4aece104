"""Letters: a character in a style and an ink on a ground, in the shapes of many font families.

A composition is (character, style, ink, ground). What a class shows varies as type does: each family draws a bold K in
its own way, and training, queries and references share no family. A picture also has a place and a scale of its own.
The letters come with cdisc as pictures, so no font is needed; `letters.json` names each family with its licence, and
`tools/letters.py` makes both files.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import errors
from cdisc.data import Dataset, colormnist, compositions
from cdisc.keys import named

CHARACTERS = ("A", "E", "G", "H", "K", "R", "S", "T")
STYLES = ("regular", "bold", "italic")
FACTOR_NAMES = ("character", "style", "ink", "ground")
PARTS = ("train", "query", "reference")
SIDE = 64
GLYPHS = pathlib.Path(__file__).with_name("letters.npz")
MANIFEST = pathlib.Path(__file__).with_name("letters.json")

_SCALES = (0.9, 1.15)
_SHIFT = 0.05


class Glyphs(NamedTuple):
    """Letters of many families.

    Attributes:
      pictures: (N, 64, 64) uint8, 0 is ground and 255 is ink; sorted by character and style.
      shapes: (N,) which of the 24 pairs of character and style, the style running faster.
      families: (N,) which entry of the manifest.
    """

    pictures: np.ndarray
    shapes: np.ndarray
    families: np.ndarray


@flax.struct.dataclass
class Letters:
    """The uniform distribution over `compositions`; given one, over its letters, and over their places and scales.

    Attributes:
      glyphs: (N, 64, 64) uint8, sorted by shape.
      starts: (25,) int32; the letters of shape s are `glyphs[starts[s]:starts[s + 1]]`.
      compositions: (C, 4) int32, the class table.
      inks: (num inks, 3) float32, RGB in 0..1.
      grounds: (num grounds, 3) float32, RGB in 0..1.
      size: pixels a side of a picture.
    """

    glyphs: jax.Array
    starts: jax.Array
    compositions: jax.Array
    inks: jax.Array
    grounds: jax.Array
    size: int = flax.struct.field(pytree_node=False)


def manifest() -> list[dict[str, Any]]:
    """Of each family the package, its version, licence, notice, SHA-256 and fonts."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def load_glyphs() -> Glyphs:
    """The letters that come with cdisc."""
    with np.load(GLYPHS, allow_pickle=False) as arrays:
        shapes = arrays["character"].astype(np.int32) * len(STYLES) + arrays["style"]
        return Glyphs(arrays["pictures"], shapes, arrays["family"])


def partition(families: Sequence[str], seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Cuts families into 70% train, 10% query and 20% reference, in the order of the SHA-256 of seed and name.

    Args:
      families: F different names.
      seed: another seed gives another partition.

    Returns:
      For each of `PARTS` the indices of its families.
    """
    order = sorted(range(len(families)), key=lambda i: hashlib.sha256(f"{seed}:{families[i]}".encode()).digest())
    train, query = round(0.7 * len(order)), round(0.1 * len(order))
    return tuple(order[:train]), tuple(order[train : train + query]), tuple(order[train + query :])


def _picture(key: jax.Array, glyph: jax.Array, ink: jax.Array, ground: jax.Array, size: int) -> jax.Array:
    """A letter (64, 64) at a place and a scale drawn from `key`, in its colours (3,): (size, size, 3) in [-1, 1]."""
    scale_key, shift_key = jax.random.split(key)
    scale = size / SIDE * jax.random.uniform(scale_key, minval=_SCALES[0], maxval=_SCALES[1])
    shift = size * jax.random.uniform(shift_key, (2,), minval=-_SHIFT, maxval=_SHIFT)
    place = (size - scale * SIDE) / 2 + shift
    covered = jax.image.scale_and_translate(
        glyph.astype(jnp.float32) / 255.0, (size, size), (0, 1), jnp.stack([scale, scale]), place, "linear"
    )
    ink, ground = ink[None, None], ground[None, None]
    return 2.0 * (ground + (ink - ground) * covered[..., None]) - 1.0


def _pictures(data: Letters, keys: jax.Array, rows: jax.Array, attributes: jax.Array) -> jax.Array:
    """The letters at `rows` (B,) in the colours of `attributes` (B, 4), each placed by its key (B,)."""
    draw = functools.partial(_picture, size=data.size)
    return jax.vmap(draw)(keys, data.glyphs[rows], data.inks[attributes[:, 2]], data.grounds[attributes[:, 3]])


def _draw_rows(data: Letters, key: jax.Array, attributes: jax.Array) -> jax.Array:
    """For each composition (B, 4) a row of `data.glyphs` that shows its letter, uniformly."""
    shapes = attributes[:, 0] * len(STYLES) + attributes[:, 1]
    return colormnist.draw_rows(data.starts, key, shapes)


@functools.partial(jax.jit, static_argnums=2)
def train_batch(data: Letters, key: jax.Array, batch_size: int, places: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Some pictures of a batch, of which each is of a class drawn uniformly, then of a letter drawn uniformly.

    Args:
      data: the distribution.
      key: the only source of randomness.
      batch_size: B.
      places: (n,) which of the B.

    Returns:
      Pictures (n, size, size, 3) float32 in [-1, 1] and labels (n,) int32, indices into `data.compositions`.
    """
    label_key, row_key, place_key = jax.random.split(key, 3)
    labels = jax.random.randint(label_key, (batch_size,), 0, data.compositions.shape[0])
    attributes = data.compositions[labels]
    rows = _draw_rows(data, row_key, attributes)
    keys = jax.random.split(place_key, batch_size)
    return _pictures(data, keys[places], rows[places], attributes[places]), labels[places]


@functools.partial(jax.jit, static_argnums=2)
def labelled_batch(data: Letters, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """A batch over ALL compositions, held-out ones included: for the judge, never for the denoiser.

    Args:
      data: the letters and their colours; its class table is not used.
      key: the only source of randomness.
      batch_size: B.

    Returns:
      Pictures (B, size, size, 3) float32 in [-1, 1] and their attributes (B, 4) int32.
    """
    row_key, place_key, value_key = jax.random.split(key, 3)
    counts = jnp.asarray([len(CHARACTERS), len(STYLES), data.inks.shape[0], data.grounds.shape[0]])
    attributes = jax.random.randint(value_key, (batch_size, len(FACTOR_NAMES)), 0, counts[None])
    keys = jax.random.split(place_key, batch_size)
    return _pictures(data, keys, _draw_rows(data, row_key, attributes), attributes), attributes


@functools.partial(jax.jit, static_argnums=2)
def _placed(data: Letters, key: jax.Array, n: int, rows: jax.Array, attributes: jax.Array) -> jax.Array:
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(n))
    return _pictures(data, keys, rows, attributes)


def pictures(data: Letters, part: str, composition: compositions.Composition, n: int) -> np.ndarray:
    """Fixed pictures of one composition: each of its letters in turn, as often as it takes, never at the same place.

    Each composition goes through the letters in an order of its own (by SHA-256), so that compositions that share a
    shape begin with different families.

    Args:
      data: the letters and their colours.
      part: one of `PARTS`; another one has other places and scales.
      composition: indices of character, style, ink and ground; any, trained or not.
      n: how many pictures.

    Returns:
      (n, size, size, 3) float32 in [-1, 1].
    """
    shape = composition[0] * len(STYLES) + composition[1]
    first, end = int(data.starts[shape]), int(data.starts[shape + 1])
    name = f"{part}:{','.join(str(int(index)) for index in composition)}"
    rows = first + np.resize(np.asarray(compositions.order(name, end - first), np.int32), n)
    attributes = np.tile(np.asarray(composition, np.int32), (n, 1))
    return np.asarray(_placed(data, named(jax.random.key(0), name), n, rows, attributes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How large the pictures are, in which colours, and what is held out.

    Attributes:
      seed: of the partition of the families into training, query and reference.
      size: pixels a side, 16 to 64.
      inks: RGB in 0..255 by name.
      grounds: the same.
      held_out: partial assignments such as "style=bold ink=pink" (`compositions.parse`); a factor left out means all of
        its values.
    """

    seed: int = 0
    size: int = 64
    inks: dict[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {"yellow": (255, 225, 25), "cyan": (70, 220, 240), "pink": (250, 120, 200)}
    )
    grounds: dict[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {"navy": (0, 0, 110), "deep_red": (120, 0, 20), "dark_green": (0, 70, 30)}
    )
    held_out: tuple[str, ...] = (
        "style=bold ink=pink",
        "ink=cyan ground=deep_red",
        "character=K style=italic",
        "style=italic ink=yellow ground=navy",
    )


def split_of(config: Options) -> compositions.CompositionSplit:
    """Which letters are trained, without the pictures.

    Raises:
      UserError: if a palette or the split cannot be used.
    """
    palettes = (colormnist.palette(config.inks, "inks"), colormnist.palette(config.grounds, "grounds"))
    factors = compositions.Factors(FACTOR_NAMES, (CHARACTERS, STYLES, *map(tuple, palettes)))
    return compositions.split(factors, tuple(config.held_out))


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes.

    The denoiser learns from training families in trained compositions. Queries show query families and references show
    reference families. The judge learns from training families in all compositions, since it must recognise held-out
    ones, and is validated on query families; no judge sees a reference.

    Args:
      config: which.

    Returns:
      The data set.

    Raises:
      UserError: if the size, a palette or the split cannot be used.
    """
    if not 16 <= config.size <= SIDE:
        raise errors.UserError(f"config.data.size is {config.size}: letters are drawn at 16 to {SIDE} pixels a side.")
    inks, grounds = colormnist.palette(config.inks, "inks"), colormnist.palette(config.grounds, "grounds")
    split = split_of(config)
    table = np.asarray(split.trained, np.int32)
    compositions.assert_no_held_out(split, table)
    glyphs = load_glyphs()

    def part_of(families: Sequence[int]) -> Letters:
        rows = np.flatnonzero(np.isin(glyphs.families, families))
        counts = np.bincount(glyphs.shapes[rows], minlength=len(CHARACTERS) * len(STYLES))
        return Letters(
            glyphs=jnp.asarray(glyphs.pictures[rows]),
            starts=jnp.asarray(np.concatenate([[0], np.cumsum(counts)]), jnp.int32),
            compositions=jnp.asarray(table),
            inks=jnp.asarray(list(inks.values()), jnp.float32) / 255.0,
            grounds=jnp.asarray(list(grounds.values()), jnp.float32) / 255.0,
            size=config.size,
        )

    names = [family["package"] for family in manifest()]
    train, query, reference = (part_of(families) for families in partition(names, config.seed))

    def labelled(part: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if part not in ("train", "query"):
            raise ValueError(f'part is "{part}": a judge may learn from "train" and be validated on "query"')
        images, attributes = labelled_batch(train if part == "train" else query, named(jax.random.key(seed), part), n)
        return np.asarray(images), np.asarray(attributes)

    digest = hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in glyphs)).hexdigest()
    identity = [digest, names, config.seed, config.size, dataclasses.asdict(split), inks, grounds]
    return Dataset(
        name="letters",
        shape=(config.size, config.size, 3),
        split=split,
        train=train,
        train_batch=train_batch,
        queries=functools.partial(pictures, query, "query"),
        references=functools.partial(pictures, reference, "reference"),
        labelled=labelled,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
    )
