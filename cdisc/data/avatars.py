"""Avatars: drawn faces whose attributes are exact, for a benchmark of faces that anyone can run.

A composition is (hair colour, hair, eyeglasses, beard, smiling). Everything else about a face is drawn by chance: the
skin, the shade of the hair, which of several hair styles, beards, frames, mouths, eyes and eyebrows, the clothes, the
background, and how the head is turned, placed and scaled. The parts are those of the package python-avatars (the
artwork is Avataaars by Pablo Stanley), drawn by resvg.
"""

import colorsys
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdisc.data import Dataset, cache, compositions, stored
from cdisc.errors import UserError

FACTORS = compositions.Factors(
    names=("hair_colour", "hair", "eyeglasses", "beard", "smiling"),
    values=(
        ("black", "blond", "brown", "gray"),
        ("short", "long", "curly"),
        ("no", "yes"),
        ("no", "yes"),
        ("no", "yes"),
    ),
)
PARTS = ("train", "query", "reference")

# Parts that have a slot for beards and frames, take the hair's colour, and can be told from the other value's at 32
# pixels: wide-open eyes look like frames there, closed smiles like serious mouths.
_HAIR = {
    "short": ("SHORT_FLAT", "SHORT_ROUND", "SHORT_WAVED", "CAESAR", "CAESAR_SIDE_PART"),
    "long": ("STRAIGHT_1", "STRAIGHT_STRAND", "LONG_NOT_TOO_LONG", "BOB", "MIA_WALLACE"),
    "curly": ("CURLY", "FRO", "SHORT_DREADS_2"),
    "bald": ("NONE",),
}
_FRAMES = {"no": ("NONE",), "yes": ("PRESCRIPTION_2", "ROUND")}
_BEARDS = {"no": ("NONE",), "yes": ("BEARD_LIGHT", "BEARD_MEDIUM", "BEARD_MAGESTIC")}
_MOUTHS = {"no": ("SERIOUS", "SAD"), "yes": ("SMILE", "BIG_SMILE")}
_EYES = ("DEFAULT", "HAPPY", "SIDE")
_EYEBROWS = ("DEFAULT_NATURAL", "RAISED_EXCITED_NATURAL")

# RGB in 0..1; the hair's brightness varies around these, the skin lies between neighbours.
_HAIR_COLOURS = {
    "black": (0.10, 0.08, 0.08),
    "blond": (0.88, 0.70, 0.34),
    "brown": (0.42, 0.24, 0.14),
    "gray": (0.74, 0.74, 0.76),
    "auburn": (0.65, 0.34, 0.16),
}
_SKINS = np.asarray([(1.00, 0.86, 0.71), (0.93, 0.73, 0.54), (0.82, 0.55, 0.36), (0.66, 0.42, 0.27)])

# Stand where a face's own colours go: no part has these.
_SKIN_MARK, _HAIR_MARK, _CLOTHES_MARK = "#0000f1", "#0000f2", "#0000f3"
# The middle and the side of the square around the head, in the artwork's units.
_CENTRE, _SIDE = (132.0, 106.0), 182.0


@functools.cache
def _template(hair: str, frames: str, beard: str, mouth: str, eyes: str, eyebrows: str) -> str:
    """The inside of an SVG with these parts, its colours still marks."""
    import python_avatars as parts

    svg = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=parts.HairType[hair],
        accessory=parts.AccessoryType[frames],
        facial_hair=parts.FacialHairType[beard],
        mouth=parts.MouthType[mouth],
        eyes=parts.EyeType[eyes],
        eyebrows=parts.EyebrowType[eyebrows],
        nose=parts.NoseType.DEFAULT,
        clothing=parts.ClothingType.SHIRT_CREW_NECK,  # drawn by chance when the package is imported, unless given
        skin_color=_SKIN_MARK,
        hair_color=_HAIR_MARK,
        facial_hair_color=_HAIR_MARK,
        clothing_color=_CLOTHES_MARK,
    ).render()
    return svg[svg.index(">") + 1 : svg.rindex("</svg>")]


def _hex(rgb: Sequence[float] | np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * min(max(float(c), 0.0), 1.0)):02x}" for c in rgb)


def _background(rng: np.random.Generator, others: np.ndarray) -> np.ndarray:
    """Of four light or muted colours the one that is farthest from `others` (K, 3): a face stands out from it."""
    drawn = rng.uniform((0.0, 0.1, 0.35), (1.0, 0.6, 0.95), (4, 3))
    colours = np.asarray([colorsys.hsv_to_rgb(*hsv) for hsv in drawn])
    distances = np.linalg.norm(colours[:, None] - others[None], axis=-1).min(axis=1)
    return colours[np.argmax(distances)]


def svg(attributes: Mapping[str, str], rng: np.random.Generator, size: int) -> str:
    """A face as an SVG of `size` x `size` pixels.

    Args:
      attributes: a value for each of `FACTORS`; the hair may also be "bald", and its colour "auburn".
      rng: everything else is drawn from it.
      size: pixels a side.
    """

    def one(choices: Sequence[str]) -> str:
        # One number however many choices there are: two compositions drawn alike differ in their attributes alone.
        return choices[int(rng.uniform() * len(choices))]

    inside = _template(
        one(_HAIR[attributes["hair"]]),
        one(_FRAMES[attributes["eyeglasses"]]),
        one(_BEARDS[attributes["beard"]]),
        one(_MOUTHS[attributes["smiling"]]),
        one(_EYES),
        one(_EYEBROWS),
    )
    hair = np.asarray(_HAIR_COLOURS[attributes["hair_colour"]]) * rng.uniform(0.85, 1.15)
    place = rng.uniform(0, len(_SKINS) - 1)
    skin = (np.stack([np.interp(place, range(len(_SKINS)), channel) for channel in _SKINS.T])) * rng.uniform(0.95, 1.05)
    clothes = colorsys.hsv_to_rgb(*rng.uniform((0.0, 0.2, 0.3), (1.0, 0.9, 1.0)))
    background = _background(rng, np.stack([hair, skin]))
    for mark, colour in ((_HAIR_MARK, hair), (_SKIN_MARK, skin), (_CLOTHES_MARK, clothes)):
        inside = inside.replace(mark, _hex(colour))
    side = _SIDE * rng.uniform(0.93, 1.07)
    (x, y), (dx, dy) = _CENTRE, rng.uniform(-0.04, 0.04, 2) * _SIDE
    angle, mirror = rng.uniform(-7.0, 7.0), 1 - 2 * int(rng.integers(2))
    box = f"{x + dx - side / 2:.3f} {y + dy - side / 2:.3f} {side:.3f} {side:.3f}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box}">'
        f'<rect x="-264" y="-280" width="792" height="840" fill="{_hex(background)}"/>'
        f'<g transform="translate({x} {y}) scale({mirror} 1) rotate({angle:.3f}) translate({-x} {-y})">'
        f"{inside}</g></svg>"
    )


@functools.cache
def _no_fonts() -> Any:
    import svg2png_py

    return svg2png_py.FontDatabase()


def rasterize(text: str) -> np.ndarray:
    """The picture (H, W, 3) uint8 of an opaque SVG, of the size that it states."""
    import svg2png_py

    data, width, height = svg2png_py.svg_to_rgba(text, _no_fonts())
    return np.frombuffer(data, np.uint8).reshape(height, width, 4)[..., :3]


def face_rng(seed: int, part: str, composition: compositions.Composition, index: int) -> np.random.Generator:
    """What face `index` of a part and a composition is drawn from: no two faces share it."""
    return np.random.default_rng([seed, PARTS.index(part), *composition, index])


def face(seed: int, part: str, composition: compositions.Composition, index: int, size: int) -> str:
    """Face `index` of a part and a composition, as an SVG."""
    rng = face_rng(seed, part, composition, index)
    return svg(compositions.attributes(FACTORS, composition), rng, size)


def example(attributes: str, index: int, size: int) -> np.ndarray:
    """Query picture `index` of the first composition that agrees with `attributes`, drawn now: (size, size, 3).

    Raises:
      UserError: for attributes that do not exist, or a package that is missing.
    """
    chosen = compositions.matching(FACTORS, [attributes])[0]
    try:
        return stored.to_float(rasterize(face(0, "query", chosen, index, size)))
    except ImportError as error:
        raise missing(error) from error


def missing(error: ImportError) -> UserError:
    """The complaint that what draws faces is not installed."""
    return UserError(f"avatars need a package that is missing ({error}): pip install 'cdisc[faces]'.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How many faces, how large, and what is held out.

    Attributes:
      seed: of all that is not an attribute.
      size: pixels a side.
      train: training faces of each of the 96 compositions; the judge alone sees those of held-out ones.
      query: queries of each.
      reference: references of each.
      cache: the folder of the faces; empty for `avatars` in the user's cache folder.
      held_out: partial assignments such as "hair_colour=blond hair=curly" (`compositions.parse`); a factor left out
        means all of its values.
    """

    seed: int = 0
    size: int = 64
    train: int = 500
    query: int = 50
    reference: int = 200
    cache: str = ""
    held_out: tuple[str, ...] = (
        "hair_colour=blond hair=curly",
        "hair_colour=gray hair=long",
        "hair=short eyeglasses=yes beard=yes",
    )


def split_of(config: Options) -> compositions.CompositionSplit:
    """Which faces are trained, without the pictures.

    Raises:
      UserError: if the split cannot be used.
    """
    return compositions.split(FACTORS, tuple(config.held_out))


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes; draws its faces the first time.

    Args:
      config: Which.

    Returns:
      The data set. The judge learns from the training faces of all compositions.

    Raises:
      UserError: If a package is missing, or the sizes, the cache or the split cannot be used.
    """
    split = split_of(config)
    counts = tuple(getattr(config, part) for part in PARTS)
    if min(counts) < 1 or config.size < 16:
        raise UserError(
            f"config.data.size is {config.size} and the faces of a composition are {counts}: use 16 pixels or more, "
            "and at least one face for each part."
        )
    everything = compositions.all_compositions(FACTORS)
    plan = [(c, part, i) for c in everything for part, n in zip(PARTS, counts, strict=True) for i in range(n)]

    def draw(rows: range) -> np.ndarray:
        chosen = (plan[row] for row in rows)
        return np.stack([rasterize(face(config.seed, part, c, i, config.size)) for c, part, i in chosen])

    try:
        # The first face of every composition stands for all that decides how faces are drawn.
        sketches = "".join(face(config.seed, "train", c, 0, config.size) for c in everything)
        version = importlib.metadata.version("svg2png-py")
    except ImportError as error:
        raise missing(error) from error
    about = {
        "drawings": hashlib.sha256(sketches.encode()).hexdigest(),
        "rasterizer": version,
        "faces": json.dumps(dict(zip(PARTS, counts, strict=True))),
    }
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    shape = (len(plan), config.size, config.size, 3)
    kept = cache.pictures(cache.folder(config.cache, "avatars") / digest[:16], about, shape, draw, "drawing avatars")
    first = dict(zip(everything, itertools.count(0, sum(counts)), strict=False))
    offsets = dict(zip(PARTS, np.cumsum([0, *counts[:-1]]), strict=True))

    def rows(part: str, chosen: Sequence[compositions.Composition]) -> stored.Rows:
        return {c: first[c] + offsets[part] + np.arange(counts[PARTS.index(part)]) for c in chosen}

    return stored.dataset(
        "avatars",
        kept.images,
        split,
        train=rows("train", split.trained),
        query=rows("query", everything),
        reference=rows("reference", everything),
        judge=rows("train", everything),
        digest=digest,
    )
