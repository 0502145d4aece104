import importlib.metadata
import itertools
import sys

import jax
import numpy as np
import pytest
from commands import config_of

from cdisc import errors
from cdisc.data import avatars, compositions

SIZE = 64
PLAIN = (0, 0, 0, 0, 0)  # black short hair, nothing else


def face(composition, seed=0):
    """A face whose every accident follows from `seed` alone."""
    attributes = compositions.attributes(avatars.FACTORS, composition)
    return avatars.rasterize(avatars.svg(attributes, np.random.default_rng(seed), SIZE)).astype(int)


def pixels_of_hair_colours(image):
    """How many pixels have each of the hair colours, at any of its brightnesses."""
    colours = np.asarray([avatars._HAIR_COLOURS[name] for name in avatars.FACTORS.values[0]]) * 255
    brightness = np.clip((image @ colours.T) / (colours**2).sum(-1), 0.85, 1.15)
    residuals = np.linalg.norm(image[..., None, :] - brightness[..., None] * colours, axis=-1)
    return (residuals < 6).sum((0, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    # One folder for the whole file: the faces are drawn once.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "avatars_cache"))


def tiny(**changes):
    config = config_of("avatars.py", "tiny").data
    config.update(train=3, query=2, reference=2, **changes)
    return config


def test_one_seed_one_face_and_no_two_faces_share_theirs():
    np.testing.assert_array_equal(face(PLAIN), face(PLAIN))
    assert not np.array_equal(face(PLAIN, 0), face(PLAIN, 1))
    origins = itertools.product((0, 1), avatars.PARTS, (PLAIN, (0, 0, 0, 0, 1)), (0, 1))
    drawn = {avatars.face_rng(*origin).uniform() for origin in origins}
    assert len(drawn) == 24


@pytest.mark.parametrize(
    ("factor", "rows"),
    # Where a turned and shifted face may differ, in shares of the height: frames at the eyes, beards from the cheeks
    # down, the mouth below the nose.
    [("eyeglasses", (0.25, 0.70)), ("beard", (0.35, 1.0)), ("smiling", (0.45, 0.95))],
)
def test_an_attribute_shows_where_it_belongs_whatever_the_rest(factor, rows):
    # Catches: a style without the slot (LOOSE_HAIR has none for beards), a smile that is drawn elsewhere or not at all.
    index = avatars.FACTORS.names.index(factor)
    for seed, hair, other in itertools.product(range(6), range(3), range(2)):
        without = [1, hair, other, other, other]
        without[index] = 0
        with_it = list(without)
        with_it[index] = 1
        changed = np.abs(face(tuple(without), seed) - face(tuple(with_it), seed)).max(-1) > 24
        assert changed.sum() > 25, (seed, hair, other)
        heights = np.nonzero(changed)[0] / SIZE
        assert rows[0] < heights.min() and heights.max() < rows[1]


@pytest.mark.parametrize("hair", sorted(set(itertools.chain(*avatars._HAIR.values()))))
def test_every_style_takes_the_hairs_colour_frames_and_beards(hair):
    # Catches: SHAVED_SIDES, which ignores the colour, and the styles that drop frames or beards.
    parts = {"frames": "NONE", "beard": "NONE", "mouth": "SMILE", "eyes": "DEFAULT", "eyebrows": "DEFAULT_NATURAL"}
    plain = avatars._template(hair, **parts)
    assert avatars._HAIR_MARK in plain and avatars._SKIN_MARK in plain and avatars._CLOTHES_MARK in plain
    for name, choices in (("frames", avatars._FRAMES["yes"]), ("beard", avatars._BEARDS["yes"])):
        for choice in choices:
            assert len(avatars._template(hair, **parts | {name: choice})) > len(plain) + 300


def test_the_hair_has_its_colour():
    # Catches: a composition's colour that does not reach the hair, or reaches another value's.
    for colour, hair in itertools.product(range(4), range(3)):
        counts = sum(pixels_of_hair_colours(face((colour, hair, 0, 0, 0), seed)) for seed in range(4))
        assert counts.argmax() == colour, (colour, hair)
        assert counts[colour] > 4 * 0.05 * SIZE**2


def test_length_shows_below_the_chin():
    # Long hair is the only one beside the neck.
    below = slice(int(0.75 * SIZE), int(0.9 * SIZE))
    share = np.asarray(
        [[np.mean(face((0, hair, 0, 0, 0), seed)[below].max(-1) < 60) for seed in range(12)] for hair in range(3)]
    ).mean(1)
    assert share[1] > 3 * max(share[0], 0.01) and share[1] > share[2]


def test_the_data_set_holds_out_what_is_one_attribute_away():
    data = avatars.load(tiny())
    assert data.name == "avatars" and data.shape == (32, 32, 3)
    assert (len(data.split.trained), len(data.split.held_out)) == (72, 24)
    for held_out in data.split.held_out:
        assert min(np.sum(np.asarray(held_out) != np.asarray(c)) for c in data.split.trained) == 1
    images, labels = data.train_batch(data.train, jax.random.key(0), 8, np.arange(8))
    for image, label in zip(np.asarray(images), labels, strict=True):
        composition = data.split.trained[int(label)]
        own = [avatars.rasterize(avatars.face(0, "train", composition, i, 32)) for i in range(3)]
        assert np.rint((image + 1.0) * 127.5).astype(np.uint8).tobytes() in {picture.tobytes() for picture in own}


def test_parts_share_no_face():
    data = avatars.load(tiny())
    held_out = data.split.held_out[5]
    shown = [*data.queries(held_out, 2), *data.references(held_out, 2)]
    trained, attributes = data.labelled("train", 2000, 0)
    shown += list(trained[(attributes == held_out).all(1)])
    # Two queries, two references and the three training faces that the judge alone sees.
    assert len({image.tobytes() for image in shown}) == 7


def test_faces_are_drawn_once(monkeypatch):
    data = avatars.load(tiny())
    monkeypatch.setattr(avatars, "rasterize", None)
    again = avatars.load(tiny())
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_fingerprint_sees_everything_that_decides_the_faces(monkeypatch):
    data = avatars.load(tiny())
    monkeypatch.setattr(
        avatars.cache,
        "pictures",
        lambda folder, about, shape, make, what: avatars.cache.Kept(np.zeros(shape, np.uint8), {}),
    )
    changes = ({"seed": 1}, {"size": 16}, {"train": 4}, {"held_out": ("hair=long beard=yes",)})
    prints = {avatars.load(tiny().copy_and_resolve_references()).fingerprint}
    assert prints == {data.fingerprint}
    for change in changes:
        config = tiny()
        config.update(change)
        prints.add(avatars.load(config).fingerprint)
    monkeypatch.setattr(avatars, "_SIDE", 150.0)
    prints.add(avatars.load(tiny()).fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "data.size is 8"),
        ({"held_out": ("hair=shrt",)}, 'did you mean "short"'),
        ({"held_out": ("beard=yes",)}, "beard=yes, so it is never trained"),
    ],
)
def test_unusable_configurations_are_the_persons_to_mend(change, message):
    with pytest.raises(errors.UserError, match=message):
        avatars.load(tiny(**change))


def test_a_missing_package_is_named(monkeypatch):
    avatars._template.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "python_avatars", None)
        with pytest.raises(errors.UserError, match=r"python_avatars.*pip install 'cdisc\[faces\]'"):
            avatars.load(tiny())

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    with pytest.raises(errors.UserError, match=r"svg2png-py.*pip install 'cdisc\[faces\]'"):
        avatars.load(tiny())


def test_compositions_read_back():
    text = compositions.describe(avatars.FACTORS, (3, 2, 1, 0, 1))
    assert text == "hair_colour=gray hair=curly eyeglasses=yes beard=no smiling=yes"
