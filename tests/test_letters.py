import hashlib
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

from cdisc import errors
from cdisc.data import compositions, letters
from tools import letters as tool

STYLES = len(letters.STYLES)
DEJAVU = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@pytest.fixture(scope="module")
def glyphs():
    return letters.load_glyphs()


@pytest.fixture(scope="module")
def dataset():
    return letters.load(letters.Options(size=32))


def part_of(dataset, part):
    """The letters of a part, and their colours."""
    return {"train": dataset.train, "query": dataset.queries.args[0], "reference": dataset.references.args[0]}[part]


def ink_of(dataset, pictures, composition):
    """How much ink covers each pixel, 0 to 1, from the picture's colours; and that no other colour is in it."""
    ink, ground = dataset.train.inks[composition[2]], dataset.train.grounds[composition[3]]
    found = (np.asarray(pictures) + 1.0) / 2.0 - np.asarray(ground)
    along = np.asarray(ink - ground, np.float64)
    covered = found @ along / (along @ along)
    np.testing.assert_allclose(found, covered[..., None] * along, atol=1e-5)
    return covered


def moments(pictures):
    """Mass, middle (x, y) and covariance of x and y of pictures (..., H, W)."""
    mass = pictures.sum((-2, -1))
    y, x = np.mgrid[: pictures.shape[-2], : pictures.shape[-1]] + 0.5
    middle = [(pictures * axis).sum((-2, -1)) / mass for axis in (x, y)]
    return mass, np.stack(middle, -1), (pictures * x * y).sum((-2, -1)) / mass - middle[0] * middle[1]


def of_family(glyphs, values):
    """The mean of a value of each letter over the weights of a family: (families, characters, styles)."""
    out = np.zeros((glyphs.families.max() + 1, len(letters.CHARACTERS), STYLES))
    counts = np.zeros_like(out)
    where = (glyphs.families, glyphs.shapes // STYLES, glyphs.shapes % STYLES)
    np.add.at(out, where, values)
    np.add.at(counts, where, 1.0)
    assert counts.min() >= 1
    return out / counts


def test_every_family_is_named_with_its_licence(glyphs):
    # Catches: letters made anew without their manifest, a family without a licence, a file that grows.
    found = letters.manifest()
    assert glyphs.families.max() + 1 == len(found) == len({entry["package"] for entry in found})
    for entry in found:
        assert entry["package"].startswith("@fontsource/") and entry["version"] and entry["notice"]
        assert entry["licence"] in ("OFL-1.1", "UFL-1.0")
        assert len(bytes.fromhex(entry["sha256"])) == 32
        assert set(entry["fonts"]) >= {"400-normal", "700-normal", "400-italic"}
    weights = np.bincount(glyphs.families) / (len(letters.CHARACTERS))
    np.testing.assert_array_equal(weights, [len(entry["fonts"]) for entry in found])
    assert letters.GLYPHS.stat().st_size < 1.5e6


def test_a_letter_is_the_one_that_its_class_says(glyphs):
    # Catches: characters in another order, families of symbols; bold and regular, or regular and italic, exchanged.
    font = ImageFont.truetype(str(DEJAVU), 39 * 2048 / 1493)
    known = np.stack([tool.draw(font, character) for character in letters.CHARACTERS]).reshape(8, -1) / 255.0
    upright = glyphs.shapes % STYLES != letters.STYLES.index("italic")
    given = glyphs.pictures[upright].reshape(-1, letters.SIDE**2) / 255.0
    likeness = given @ known.T / np.linalg.norm(given, axis=1)[:, None] / np.linalg.norm(known, axis=1)
    shown = glyphs.shapes[upright] // STYLES
    assert np.mean(likeness.argmax(1) == shown) > 0.9
    for character in range(8):
        assert likeness[shown == character].mean(0).argmax() == character
    mass, _, slant = moments(glyphs.pictures / 255.0)
    regular, bold, _ = np.moveaxis(of_family(glyphs, mass), -1, 0)
    assert (bold > regular).all()
    # An upright letter's slant is its shape's; a slanted one leans further to the right, where y points down.
    upright, _, italic = np.moveaxis(of_family(glyphs, slant), -1, 0)
    assert np.mean(italic < upright) > 0.99 and (np.median(upright - italic, axis=0) > 3.0).all()


def test_a_letter_stands_in_the_middle_and_is_as_high_as_the_others(glyphs):
    # Catches: a letter cut off, a size in em instead of the height of H.
    for picture in glyphs.pictures:
        (top, bottom), (left, right) = (
            (lambda used: (used[0], used[-1]))(np.nonzero(picture.max(a))[0]) for a in (1, 0)
        )
        assert abs(top + bottom - 63) <= 2 and abs(left + right - 63) <= 2
        assert max(bottom - top, right - left) < letters.SIDE - 6
    heights = [np.ptp(np.nonzero(p.max(1))[0]) + 1 for p in glyphs.pictures[glyphs.shapes // STYLES == 3]]
    assert min(heights) >= 36 and max(heights) <= 42


def test_the_tool_draws_what_freetype_draws():
    font = ImageFont.truetype(str(DEJAVU), 50)
    mask = font.getmask("T")
    drawn = tool.draw(font, "T")
    assert set(np.unique(drawn)) <= set(range(0, 256, 17))
    assert drawn.sum() == pytest.approx(np.asarray(mask, float).sum(), rel=0.02)
    with pytest.raises(ValueError, match=r"has A of .* pixels, which is too large"):
        tool.draw(ImageFont.truetype(str(DEJAVU), 90), "A")


def test_families_are_cut_into_parts_by_name_alone():
    # Catches: a partition that follows the order of the manifest; a family in two parts or in none.
    names = [f"family {i}" for i in range(50)]
    parts = letters.partition(names, 3)
    assert [len(part) for part in parts] == [35, 5, 10]
    assert sorted(sum(parts, ())) == list(range(50))
    again = letters.partition(names[::-1], 3)
    for part, other in zip(parts, again, strict=True):
        assert [names[i] for i in part] == [names[::-1][i] for i in other]
    assert letters.partition(names, 4) != parts


def test_no_letter_of_a_query_or_a_reference_is_trained(dataset):
    # Catches: a split by picture instead of family.
    content = letters.load_glyphs()
    family_of = {picture.tobytes(): family for picture, family in zip(content.pictures, content.families, strict=True)}
    assert len(family_of) == len(content.pictures)
    seen = [{family_of[glyph.tobytes()] for glyph in np.asarray(part_of(dataset, p).glyphs)} for p in letters.PARTS]
    assert sorted(map(len, seen)) == [8, 15, 54] and len(set.union(*seen)) == 77
    counts = [len(np.asarray(part_of(dataset, part).glyphs)) for part in letters.PARTS]
    assert sum(counts) == len(content.pictures)


def test_what_is_held_out_and_what_is_trained(dataset):
    # Catches: a rule lost; a pair of the triple's that is not trained.
    split = dataset.split
    named = [compositions.attributes(split.factors, c) for c in split.held_out]
    kinds = {
        "pair of style and ink": [c for c in named if (c["style"], c["ink"]) == ("bold", "pink")],
        "pair of ink and ground": [c for c in named if (c["ink"], c["ground"]) == ("cyan", "deep_red")],
        "pair of character and style": [c for c in named if (c["character"], c["style"]) == ("K", "italic")],
        "triple": [c for c in named if (c["style"], c["ink"], c["ground"]) == ("italic", "yellow", "navy")],
    }
    assert [len(found) for found in kinds.values()] == [24, 24, 9, 8]
    assert (len(split.trained), len(split.held_out)) == (153, 63)
    trained = np.asarray(split.trained)
    for one, other in ((1, 2), (1, 3), (2, 3)):
        wanted = [dict(style="italic", ink="yellow", ground="navy")[split.factors.names[f]] for f in (one, other)]
        values = [split.factors.values[f].index(w) for f, w in zip((one, other), wanted, strict=True)]
        assert (trained[:, [one, other]] == values).all(1).any()
    differ = [np.min((trained != np.asarray(c)).sum(1)) for c in split.held_out]
    far = [compositions.title(split.factors, c) for c, d in zip(split.held_out, differ, strict=True) if d > 1]
    assert far == ["K italic cyan deep_red"] and max(differ) == 2


def test_a_batch_shows_its_classes_uniformly_and_no_others(dataset):
    # Catches: labels that are not those of the pictures, a style or a character exchanged, a class never drawn.
    n = 4000
    images, labels = dataset.train_batch(dataset.train, jax.random.key(3), n, np.arange(n))
    assert images.shape == (n, 32, 32, 3) and images.dtype == jnp.float32 and labels.dtype == jnp.int32
    counts = np.bincount(np.asarray(labels), minlength=153)
    assert len(counts) == 153 and abs(counts - n / 153).max() < 5 * np.sqrt(n / 153)
    data = part_of(dataset, "train")
    masses = np.asarray(data.glyphs).sum((1, 2)) / 255.0
    for label in (0, 50, 152):
        composition = dataset.split.trained[label]
        covered = ink_of(dataset, images[np.asarray(labels) == label], composition)
        shape = composition[0] * STYLES + composition[1]
        own = masses[int(data.starts[shape]) : int(data.starts[shape + 1])] / 4.0
        assert covered.min() > -1e-5 and covered.max() < 1.0 + 1e-5
        mass = covered.sum((1, 2))
        assert own.min() * 0.9**2 * 0.97 < mass.min() and mass.max() < own.max() * 1.15**2 * 1.03


def test_a_batch_follows_from_its_key_whichever_places_are_read(dataset):
    whole, labels = dataset.train_batch(dataset.train, jax.random.key(0), 12, np.arange(12))
    for places in (np.arange(12), np.asarray([7, 2])):
        images, found = dataset.train_batch(dataset.train, jax.random.key(0), 12, places)
        np.testing.assert_allclose(images, whole[places], atol=1e-6)
        np.testing.assert_array_equal(found, labels[places])
    assert not np.array_equal(dataset.train_batch(dataset.train, jax.random.key(1), 12, np.arange(12))[0], whole)


@pytest.mark.parametrize("size", [32, 64])
def test_a_letter_moves_and_grows_within_bounds(size):
    # Catches: a shift in the pixels of the file and not the picture's, a scale about a corner; another class's letters.
    dataset = letters.load(letters.Options(size=size))
    composition = dataset.split.trained[100]
    pictures = dataset.references(composition, 60)
    covered = ink_of(dataset, pictures, composition)
    data = part_of(dataset, "reference")
    shape = composition[0] * STYLES + composition[1]
    glyphs = np.asarray(data.glyphs)[int(data.starts[shape]) : int(data.starts[shape + 1])] / 255.0
    mass, middle, _ = moments(covered)
    known_mass, known_middle, _ = moments(glyphs)
    ratio = mass[:, None] / known_mass / (size / letters.SIDE) ** 2
    scales = np.sqrt(ratio)
    possible = (scales > 0.9 - 0.01) & (scales < 1.15 + 0.01)
    offset = middle[:, None] - size / 2 - scales[..., None] * (known_middle - letters.SIDE / 2) * size / letters.SIDE
    possible &= (abs(offset) < 0.05 * size + 0.02).all(-1)
    assert possible.any(1).all()
    assert np.ptp(middle, axis=0).min() > 0.06 * size


def test_queries_are_always_the_same_and_begin_with_others_for_each_class(dataset):
    # Catches: pictures that depend on how many are asked for; one place for a letter that comes twice; the places of
    # queries for references.
    one, other = dataset.split.held_out[0], dataset.split.held_out[1]
    some, more = dataset.queries(one, 3), dataset.queries(one, 90)
    np.testing.assert_array_equal(some, more[:3])
    assert len(np.unique(more.reshape(90, -1), axis=0)) == 90
    data = part_of(dataset, "query")
    np.testing.assert_array_equal(letters.pictures(data, "query", one, 3), some)
    assert not np.isclose(letters.pictures(data, "reference", one, 1), some[:1], atol=0.1).all()
    a, b = ink_of(dataset, dataset.queries(one, 8), one), ink_of(dataset, dataset.queries(other, 8), other)
    assert not np.allclose(a, b, atol=0.1)


def test_the_judge_sees_all_compositions_and_no_reference(dataset):
    images, attributes = dataset.labelled("train", 3000, 1)
    assert images.shape == (3000, 32, 32, 3) and attributes.dtype == np.int32
    assert len(np.unique(attributes, axis=0)) == 216
    np.testing.assert_array_equal(dataset.labelled("train", 3000, 1)[0][:5], images[:5])
    ink_of(dataset, images[:1], attributes[0])
    with pytest.raises(ValueError, match='part is "reference": a judge may learn from "train"'):
        dataset.labelled("reference", 5, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 80}, r"config\.data\.size is 80: letters are drawn at 16 to 64 pixels a side"),
        ({"inks": {"red": (300, 0, 0)}}, r"config\.data\.inks\.red is \(300, 0, 0\): write three whole numbers"),
        ({"grounds": {}}, r"config\.data\.grounds names no colour"),
        ({"held_out": ("style=bald",)}, 'names the style value "bald", which does not exist: did you mean "bold"'),
        ({"held_out": ("style=bold",)}, "holds out every composition with style=bold"),
    ],
)
def test_what_cannot_be_used_is_said(changes, message):
    with pytest.raises(errors.UserError, match=message):
        letters.load(letters.Options(**changes))


def test_the_fingerprint_is_of_all_that_decides_the_pictures(dataset):
    changes = [{}, {"seed": 1}, {"size": 48}, {"held_out": ("style=bold ink=pink",)}, {"inks": {"red": (255, 0, 0)}}]
    changes[-1]["held_out"] = ("style=bold ground=navy",)
    found = [letters.load(letters.Options(**{"size": 32, **change})).fingerprint for change in changes]
    assert found[0] == dataset.fingerprint and len(set(found)) == len(found)
    content = letters.load_glyphs()
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in content)).hexdigest()
    assert digest == "ad80250ffb3f5306e6c03e8cee3aeb194a4cdca5d58622e64b38cfbce855ad94"
