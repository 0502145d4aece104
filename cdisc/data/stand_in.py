"""A folder in CelebA's layout whose faces are avatars: what tries the code for CelebA where CelebA is not there.

Its attributes are as frequent as CelebA's and, like those, depend on the sex. The pictures show the colour of the hair,
whether it is wavy, bald heads, eyeglasses, beards and smiles; the other attributes are in the file alone.
"""

import hashlib
import pathlib

import numpy as np
from PIL import Image

from cdisc import console, storage
from cdisc.data import avatars

# fmt: off
NAMES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips",
    "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin",
    "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open",
    "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline",
    "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat",
    "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)
# fmt: on
"""CelebA's forty attributes in its order."""

MALE = 0.4168
SHARES = {
    "Black_Hair": (0.2393, 0.30),
    "Blond_Hair": (0.1480, 0.02),
    "Brown_Hair": (0.2052, 0.15),
    "Gray_Hair": (0.0420, 0.09),
    "Bald": (0.0224, 0.053),
    "Wavy_Hair": (0.3196, 0.14),
    "No_Beard": (0.8349, 0.604),
    "Smiling": (0.4821, 0.40),
    "Big_Nose": (0.2345, 0.42),
    "Big_Lips": (0.2408, 0.16),
    "Oval_Face": (0.2841, 0.23),
    "Sideburns": (0.0565, 0.135),
    "Wearing_Necklace": (0.1230, 0.01),
    "Eyeglasses": (0.0651, 0.12),
}
"""For each attribute its share in CelebA, and among the men.

The shares of everybody are those of the attribute file (169,158 of its 202,599 faces have No_Beard), and so is that of
blond men (1,749; blond women are 28,234). The other shares of men are our rounding.
"""

_HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Bald")
_COLOURS = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
_SIZE = (178, 218)


def draw_attributes(count: int, seed: int) -> dict[str, np.ndarray]:
    """Attributes (count,) bool by name. At most one of the hair's colours and Bald is true of a face."""
    rng = np.random.default_rng(seed)
    male = rng.random(count) < MALE
    found = {"Male": male}
    share = {n: np.where(male, men, (all_ - MALE * men) / (1.0 - MALE)) for n, (all_, men) in SHARES.items()}
    bounds = np.cumsum([share[name] for name in _HAIR], axis=0)
    which = (rng.random(count) > bounds).sum(axis=0)
    found |= {name: which == i for i, name in enumerate(_HAIR)}
    return found | {name: rng.random(count) < share[name] for name in SHARES if name not in _HAIR}


def draw_face(attributes: dict[str, bool], rng: np.random.Generator) -> np.ndarray:
    """The avatar (218, 178, 3) uint8 of a line of the attribute file."""
    colour = next((value for name, value in _COLOURS.items() if attributes[name]), "auburn")
    length = "short" if attributes["Male"] else "long"
    words = {
        "hair_colour": colour,
        "hair": "bald" if attributes["Bald"] else "curly" if attributes["Wavy_Hair"] else length,
        "eyeglasses": "yes" if attributes["Eyeglasses"] else "no",
        "beard": "no" if attributes["No_Beard"] else "yes",
        "smiling": "yes" if attributes["Smiling"] else "no",
    }
    width, height = _SIZE
    square = avatars.rasterize(avatars.svg(words, rng, width))
    return np.pad(square, [((height - width) // 2,) * 2, (0, 0), (0, 0)], mode="edge")


def write(root: pathlib.Path, count: int, seed: int) -> None:
    """Writes `img_align_celeba/`, `list_eval_partition.txt` and, last, `list_attr_celeba.txt` into the folder `root`.

    Args:
      root: made if it is not there; what a stopped run left in it is kept.
      count: how many faces.
      seed: of all chance.

    Raises:
      UserError: if the folder cannot be written.
    """
    images = root / "img_align_celeba"
    storage.writable(images, "set XDG_CACHE_HOME to another folder")
    found = draw_attributes(count, seed)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    for i, file in enumerate(console.progress(names, "drawing a stand-in for CelebA")):
        if (images / file).exists():
            continue
        face = draw_face({name: bool(values[i]) for name, values in found.items()}, np.random.default_rng([seed, i]))
        partial = images / f"{file}.partial"
        Image.fromarray(face).save(partial, "JPEG", quality=90)
        partial.replace(images / file)
    # The shares of CelebA's own partition.
    parts = [0 if i < 0.8 * count else 1 if i < 0.9 * count else 2 for i in range(count)]
    lines = [f"{file} {part}" for file, part in zip(names, parts, strict=True)]
    storage.write_text(root / "list_eval_partition.txt", "\n".join(lines) + "\n")
    signs = np.stack([found.get(name, np.zeros(count, bool)) for name in NAMES], axis=1)
    lines = [f"{file} " + " ".join(" 1" if on else "-1" for on in row) for file, row in zip(names, signs, strict=True)]
    storage.write_text(root / "list_attr_celeba.txt", "\n".join([str(count), " ".join(NAMES), *lines]) + "\n")


def folder(count: int, seed: int) -> pathlib.Path:
    """Where a stand-in lies, written first if it is not there.

    Raises:
      UserError: if a package is missing, or the folder cannot be written.
    """
    # The first face stands for all that decides how faces are drawn.
    found = {name: bool(values[0]) for name, values in draw_attributes(count, seed).items()}
    try:
        sketch = hashlib.sha256(draw_face(found, np.random.default_rng([seed, 0])).tobytes()).hexdigest()
        root = storage.cache_folder("celeba_stand_in") / f"{count}_faces_seed_{seed}_{sketch[:8]}"
        if not (root / "list_attr_celeba.txt").is_file():
            write(root, count, seed)
    except ImportError as error:
        raise avatars.missing(error) from error
    return root
