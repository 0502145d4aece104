"""Makes `cdisc/data/letters.npz` and its manifest `letters.json` from font packages.

    mkdir fonts && (cd fonts && npm pack $(python -m tools.letters))
    python -m tools.letters fonts

Without a folder it names the packages, each with its version. With one it draws the letters of each package's Latin
fonts. A family whose letters do not all have three styles, or do not fit, is refused.
"""

import hashlib
import io
import json
import pathlib
import re
import sys
import tarfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdisc.data import letters

_WEIGHTS = {
    "regular": ("300-normal", "400-normal"),
    "bold": ("700-normal", "800-normal", "900-normal"),
    "italic": ("300-italic", "400-italic"),
}
"""The fonts of a style, those that a family has of them; the one in the middle of the name it must have."""
_NEEDED = ("400-normal", "700-normal", "400-italic")
_HEIGHT = 39
"""How many of `letters.SIDE` pixels an upright H of weight 400 is high."""
_MARGIN = 4
_LEVELS = 15
"""Shades of ink: more would not be seen, and would double the file."""


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """A letter as (SIDE, SIDE) uint8, 255 where its ink is, the middle of its ink in the middle."""
    side = letters.SIDE
    canvas = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(canvas).text((side, side), character, font=font, fill=255)
    found = canvas.getbbox()  # not the font's own box, which reaches to the pen
    assert found is not None
    left, top, right, bottom = found
    if max(right - left, bottom - top) > side - 2 * _MARGIN:
        raise ValueError(
            f"{font.getname()} has {character} of {right - left}x{bottom - top} pixels, which is too large"
        )
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    picture = canvas.crop((x, y, x + side, y + side))
    return (np.rint(np.asarray(picture) / (255 / _LEVELS)) * (255 // _LEVELS)).astype(np.uint8)


def fonts_of(package: tarfile.TarFile, name: str) -> dict[str, bytes]:
    """The files of a family's Latin fonts, by weight and slant."""
    found = {}
    for weights in _WEIGHTS.values():
        for weight in weights:
            try:
                file = package.extractfile(f"package/files/{name}-latin-{weight}.woff")
            except KeyError:
                continue
            assert file is not None
            found[weight] = file.read()
    return found


def family_of(path: pathlib.Path) -> tuple[dict[str, object], list[tuple[int, int, np.ndarray]]]:
    """A package's entry in the manifest, and its letters: the character, the style and the picture of each."""
    with tarfile.open(path) as package:
        about_file, licence_file = package.extractfile("package/package.json"), package.extractfile("package/LICENSE")
        assert about_file is not None and licence_file is not None
        about = json.load(about_file)
        notice = re.split(r"\s\S+: Copyright", licence_file.read().decode().strip().splitlines()[0])[0]
        fonts = fonts_of(package, about["name"].rpartition("/")[2])
    absent = [weight for weight in _NEEDED if weight not in fonts]
    if absent:
        raise ValueError(f"{path.name} has no {absent}")
    trial = ImageFont.truetype(io.BytesIO(fonts["400-normal"]), 1000)
    _, top, _, bottom = trial.getbbox("H")
    size = 1000 * _HEIGHT / (bottom - top)
    drawn = []
    for style, weights in enumerate(_WEIGHTS.values()):
        for weight in (w for w in weights if w in fonts):
            font = ImageFont.truetype(io.BytesIO(fonts[weight]), size)
            drawn += [(c, style, draw(font, character)) for c, character in enumerate(letters.CHARACTERS)]
    entry = {
        "package": about["name"],
        "version": about["version"],
        "licence": about["license"],
        "notice": notice,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "fonts": list(fonts),
    }
    return entry, drawn


def main(arguments: list[str]) -> None:
    """Writes the two files, or names the packages."""
    if not arguments:
        print(*(f"{entry['package']}@{entry['version']}" for entry in letters.manifest()))
        return
    families, glyphs = [], []
    for path in sorted(pathlib.Path(arguments[0]).glob("*.tgz")):
        try:
            entry, drawn = family_of(path)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        glyphs += [(character, style, len(families), picture) for character, style, picture in drawn]
        families.append(entry)
    glyphs.sort(key=lambda glyph: glyph[:3])  # stable: weights of a family stay in order
    character, style, family, pictures = (np.stack(column) for column in zip(*glyphs, strict=True))
    columns = {"character": character, "style": style, "family": family}
    np.savez_compressed(
        letters.GLYPHS, pictures=pictures, **{name: column.astype(np.uint8) for name, column in columns.items()}
    )
    letters.MANIFEST.write_text(json.dumps(families, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"{len(pictures)} letters of {len(families)} families: {letters.GLYPHS}, {letters.GLYPHS.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
