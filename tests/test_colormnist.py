import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc import errors
from cdisc.data import colormnist, compositions, digits

DIGIT_COLOURS = {"yellow": (255, 225, 25), "green": (60, 200, 75), "cyan": (70, 220, 240), "pink": (250, 120, 200)}
BACKGROUNDS = {"deep_red": (120, 0, 20), "navy": (0, 0, 110), "dark_purple": (75, 0, 110), "dark_brown": (85, 50, 15)}
HELD_OUT = {"cyan": "deep_red", "green": "navy", "pink": "dark_purple", "yellow": "dark_brown"}


def make_config(**changes):
    config = {
        "digit_colours": DIGIT_COLOURS,
        "backgrounds": BACKGROUNDS,
        "held_out": tuple(f"digit_colour={colour} background={b}" for colour, b in HELD_OUT.items()),
    }
    return colormnist.Options(**{**config, **changes})


@pytest.fixture(scope="module")
def dataset():
    return colormnist.load(make_config())


@pytest.fixture(scope="module")
def parts():
    return digits.partition(digits.load("bundled"), 0)


def small_data():
    """Two pictures of 0, three of 1, none of the others; three classes."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    return colormnist.ColorMNIST(
        digits=jnp.asarray(images),
        starts=jnp.asarray([0, 2] + [5] * 9, jnp.int32),
        compositions=jnp.asarray([(0, 0, 1), (1, 0, 0), (1, 1, 1)], jnp.int32),
        foregrounds=jnp.asarray([(1.0, 0.5, 0.0), (0.0, 1.0, 1.0)]),
        backgrounds=jnp.asarray([(0.1, 0.2, 0.3), (0.5, 0.0, 0.0)]),
    )


def expected_picture(data, row, composition):
    """The blend written out in float64."""
    fore = np.asarray(data.foregrounds, np.float64)[composition[1]]
    back = np.asarray(data.backgrounds, np.float64)[composition[2]]
    ink = np.asarray(data.digits, np.float64)[row, :, :, None] / 255.0
    picture = np.tile(2.0 * back - 1.0, (32, 32, 1))
    picture[2:30, 2:30] = 2.0 * (ink * fore + (1.0 - ink) * back) - 1.0
    return picture


def uncoloured(dataset, picture):
    """Colour names and the 28x28 digit of a picture, from its pixels alone."""
    rgb = np.rint((np.asarray(picture, np.float64) + 1.0) * 127.5)
    background = {tuple(colour): name for name, colour in BACKGROUNDS.items()}[tuple(rgb[0, 0].astype(int))]
    back = np.asarray(BACKGROUNDS[background], np.float64)
    residuals = {}
    for name, colour in DIGIT_COLOURS.items():
        direction = np.asarray(colour) - back
        ink = ((np.asarray(picture, np.float64) + 1.0) * 127.5 - back) @ direction / (direction @ direction)
        # The ink must also lie in 0..1: a brighter colour of the same hue would need more.
        error = np.abs(back + ink[..., None] * direction - (np.asarray(picture) + 1.0) * 127.5).max()
        residuals[name] = (error + 255.0 * max(0.0, ink.max() - 1.001), ink)
    colour = min(residuals, key=lambda name: residuals[name][0])
    return colour, background, np.rint(255.0 * residuals[colour][1][2:-2, 2:-2]).astype(np.uint8)


def test_render_is_the_blend_with_a_margin_of_background():
    data = small_data()
    rendered = colormnist.render(data.digits[3], data.foregrounds[1], data.backgrounds[0])
    assert rendered.shape == colormnist.SHAPE and rendered.dtype == jnp.float32
    np.testing.assert_allclose(rendered, expected_picture(data, 3, (1, 1, 0)), atol=1e-6)


def test_render_takes_any_leading_axes():
    data = small_data()
    fore, back = jnp.tile(data.foregrounds, (2, 1)), jnp.tile(data.backgrounds, (2, 1))
    batch = colormnist.render(data.digits[:4], fore, back)
    grid = colormnist.render(data.digits[:4].reshape(2, 2, 28, 28), fore.reshape(2, 2, 3), back.reshape(2, 2, 3))
    np.testing.assert_array_equal(grid.reshape(4, 32, 32, 3), batch)
    for one, digit, f, b in zip(batch, data.digits, fore, back, strict=False):
        np.testing.assert_allclose(one, colormnist.render(digit, f, b), atol=1e-6)


def test_train_batch_draws_classes_and_then_pictures_uniformly():
    data = small_data()
    images, labels = colormnist.train_batch(data, jax.random.key(3), 1200, np.arange(1200))
    assert images.shape == (1200, 32, 32, 3) and images.dtype == jnp.float32 and labels.dtype == jnp.int32
    rows_of = {0: (0, 1), 1: (2, 3, 4)}
    for label, composition in enumerate(np.asarray(data.compositions)):
        drawn = np.asarray(images)[np.asarray(labels) == label]
        assert abs(len(drawn) - 400) < 5 * np.sqrt(1200 * (1 / 3) * (2 / 3))
        rows = rows_of[composition[0]]
        candidates = np.stack([expected_picture(data, row, composition) for row in rows])
        distance = np.abs(drawn[:, None] - candidates[None]).max((2, 3, 4))
        assert distance.min(1).max() < 1e-5
        counts = np.bincount(distance.argmin(1), minlength=len(rows))
        assert np.abs(counts - len(drawn) / len(rows)).max() < 5 * np.sqrt(len(drawn) / len(rows))


def test_train_batch_is_a_function_of_the_key_and_compiles_once():
    data, traces = small_data(), []

    @jax.jit
    def draw(data, key):
        traces.append(None)
        return colormnist.train_batch(data, key, 16, np.arange(16))

    first, again, other = (draw(data, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert len(traces) == 1
    # Some places of a batch are those of the whole, not the first ones of a smaller batch.
    places = np.asarray([15, 3])
    some = colormnist.train_batch(data, jax.random.key(0), 16, places)
    np.testing.assert_array_equal(some[0], first[0][places])
    np.testing.assert_array_equal(some[1], first[1][places])


def test_labels_and_pictures_are_drawn_independently():
    # With one key for both, the picture drawn would follow from the label.
    data = small_data()
    images, labels = colormnist.train_batch(data, jax.random.key(0), 1000, np.arange(1000))
    for label, composition in ((1, (1, 0, 0)), (2, (1, 1, 1))):
        chosen = np.asarray(images)[np.asarray(labels) == label]
        candidates = np.stack([expected_picture(data, row, composition) for row in (2, 3, 4)])
        counts = np.bincount(np.abs(chosen[:, None] - candidates[None]).max((2, 3, 4)).argmin(1), minlength=3)
        assert counts.min() > len(chosen) / 3 - 5 * np.sqrt(len(chosen) / 3)


def test_pictures_are_different_fixed_and_limited():
    data = small_data()
    three = colormnist.pictures(data, (1, 0, 1), 3)
    candidates = np.stack([expected_picture(data, row, (1, 0, 1)) for row in (2, 3, 4)])
    nearest = np.abs(three[:, None] - candidates[None]).max((2, 3, 4))
    assert sorted(nearest.argmin(1)) == [0, 1, 2] and nearest.min(1).max() < 1e-5
    np.testing.assert_array_equal(colormnist.pictures(data, (1, 0, 1), 2), three[:2])
    with pytest.raises(errors.UserError, match=r"4 different pictures of the digit 1 are wanted .* has 3"):
        colormnist.pictures(data, (1, 0, 1), 4)


def test_dataset_is_the_papers(dataset):
    assert dataset.name == "colormnist" and dataset.shape == (32, 32, 3)
    assert len(dataset.split.trained) == 120 and len(dataset.split.held_out) == 40
    words = [compositions.attributes(dataset.split.factors, c) for c in dataset.split.held_out]
    assert {(w["digit"], w["digit_colour"], w["background"]) for w in words} == {
        (str(digit), *pair) for digit in range(10) for pair in HELD_OUT.items()
    }
    assert dataset.train_batch is colormnist.train_batch
    np.testing.assert_array_equal(dataset.train.compositions, dataset.split.trained)


def test_training_pixels_show_trained_pairs_and_training_digits_only(dataset, parts):
    images, labels = dataset.train_batch(dataset.train, jax.random.key(1), 200, np.arange(200))
    value_of = {image.tobytes(): label for image, label in zip(parts.train.images, parts.train.labels, strict=True)}
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        colour, background, digit = uncoloured(dataset, image)
        words = compositions.attributes(dataset.split.factors, dataset.split.trained[label])
        assert (colour, background) == (words["digit_colour"], words["background"])
        assert HELD_OUT[colour] != background
        assert str(value_of[digit.tobytes()]) == words["digit"]


@pytest.mark.parametrize("part", ["query", "reference"])
def test_queries_and_references_show_digits_of_their_own_part(dataset, parts, part):
    draw = dataset.queries if part == "query" else dataset.references
    chosen = getattr(parts, part)
    value_of = {image.tobytes(): label for image, label in zip(chosen.images, chosen.labels, strict=True)}
    first = []
    for composition in dataset.split.held_out[12:16]:
        pictures = draw(composition, 10)
        words = compositions.attributes(dataset.split.factors, composition)
        recovered = [uncoloured(dataset, picture) for picture in pictures]
        assert {colour for colour, _, _ in recovered} == {words["digit_colour"]}
        assert {background for _, background, _ in recovered} == {words["background"]}
        assert {str(value_of[digit.tobytes()]) for _, _, digit in recovered} == {words["digit"]}
        assert len({digit.tobytes() for _, _, digit in recovered}) == 10
        first.append(recovered[0][2].tobytes())
    # Compositions of one digit begin with different handwriting.
    assert len(set(first)) > 1


def test_labelled_pictures_cover_all_compositions_and_keep_to_their_part(dataset, parts):
    for part in ("train", "query"):
        images, attributes = dataset.labelled(part, 1500, 7)
        assert images.shape == (1500, 32, 32, 3) and attributes.shape == (1500, 3) and attributes.dtype == np.int32
        assert {tuple(row) for row in attributes} == set(compositions.all_compositions(dataset.split.factors))
        chosen = getattr(parts, part)
        value_of = {image.tobytes(): label for image, label in zip(chosen.images, chosen.labels, strict=True)}
        for image, row in zip(images[:100], attributes, strict=False):
            words = compositions.attributes(dataset.split.factors, tuple(row))
            colour, background, digit = uncoloured(dataset, image)
            assert (colour, background) == (words["digit_colour"], words["background"])
            assert str(value_of[digit.tobytes()]) == words["digit"]
    assert not np.array_equal(dataset.labelled("query", 8, 0)[1], dataset.labelled("query", 8, 1)[1])
    with pytest.raises(ValueError, match="reference"):
        dataset.labelled("reference", 1, 0)


def test_labelled_batch_draws_each_attribute_uniformly(dataset):
    _, attributes = jax.jit(colormnist.labelled_batch, static_argnums=2)(dataset.train, jax.random.key(0), 8000)
    for column, size in enumerate((10, 4, 4)):
        counts = np.bincount(np.asarray(attributes)[:, column], minlength=size)
        assert np.abs(counts - 8000 / size).max() < 5 * np.sqrt(8000 / size)
    # Pairs are independent: with one key for both colours they would be equal.
    pairs = np.bincount(np.asarray(attributes) @ np.asarray([0, 4, 1]), minlength=16)
    assert np.abs(pairs - 500).max() < 5 * np.sqrt(500)


def test_fingerprint_sees_everything_that_decides_the_pictures(dataset):
    changes = (
        {"seed": 1},
        {"digit_colours": {**DIGIT_COLOURS, "pink": (250, 120, 201)}},
        {"backgrounds": {**BACKGROUNDS, "navy": (0, 0, 111)}},
        {"held_out": ("digit_colour=cyan background=deep_red",)},
    )
    prints = [colormnist.load(make_config(**change)).fingerprint for change in changes]
    assert len({dataset.fingerprint, *prints}) == 5
    reordered = make_config(digit_colours=dict(reversed(DIGIT_COLOURS.items())))
    assert colormnist.load(reordered).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digit_colours": {**DIGIT_COLOURS, "pink": (250, 120)}}, "data.digit_colours.pink"),
        ({"backgrounds": {**BACKGROUNDS, "navy": (0, 0, 256)}}, "data.backgrounds.navy"),
        ({"backgrounds": {**BACKGROUNDS, "navy": (0, 0, 0.5)}}, "three whole numbers"),
        ({"backgrounds": {**BACKGROUNDS, "navy": BACKGROUNDS["deep_red"]}}, "the same colour as deep_red"),
        ({"backgrounds": {}}, "names no colour"),
        ({"held_out": ("digit_colour=cyan background=red",)}, "deep_red"),
        ({"source": "idx"}, "data.root"),
    ],
)
def test_unusable_configurations_are_the_persons_to_mend(change, message):
    with pytest.raises(errors.UserError, match=message):
        colormnist.load(make_config(**change))


def test_a_source_without_some_digit_is_refused(monkeypatch):
    bundled = digits.load("bundled")
    few = digits.Digits(bundled.images[bundled.labels != 4], bundled.labels[bundled.labels != 4])
    monkeypatch.setattr(digits, "load", lambda source, root: few)
    with pytest.raises(errors.UserError, match="no picture of 4 for the train part"):
        colormnist.load(make_config())
