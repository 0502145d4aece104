import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc import errors
from cdisc.data import compositions, stored

FACTORS = compositions.Factors(names=("a", "b"), values=(("0", "1"), ("0", "1")))
SPLIT = compositions.split(FACTORS, ("a=1 b=1",))
# Row r shows its own number, so that a picture says which it is.
IMAGES = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 2, 2, 3))
TRAIN = {(0, 0): np.asarray([3, 5]), (0, 1): np.asarray([7]), (1, 0): np.asarray([2, 4, 6])}
JUDGE = {**TRAIN, (1, 1): np.asarray([20, 21])}
QUERY = {(0, 0): np.asarray([30]), (1, 1): np.asarray([31, 33, 32])}
REFERENCE = {(1, 1): np.asarray([38, 37, 36])}


def make(**changes):
    rows = {"train": TRAIN, "query": QUERY, "reference": REFERENCE, "judge": JUDGE} | changes
    return stored.dataset("stored", IMAGES, SPLIT, digest="d", **rows)


def rows_of(images):
    rows = np.rint((np.asarray(images)[:, 0, 0, 0] + 1.0) * 127.5).astype(int)
    np.testing.assert_allclose(
        images, np.broadcast_to(rows[:, None, None, None] / 127.5 - 1.0, images.shape), atol=1e-6
    )
    return rows


def test_train_batch_draws_classes_and_then_pictures_uniformly():
    # Catches: drawing pictures uniformly, one key for both draws, labels in another order than split.trained.
    data = make()
    images, labels = data.train_batch(data.train, jax.random.key(0), 3000, np.arange(3000))
    assert images.shape == (3000, 2, 2, 3) and images.dtype == jnp.float32 and labels.dtype == jnp.int32
    rows, labels = rows_of(images), np.asarray(labels)
    for label, composition in enumerate(SPLIT.trained):
        drawn = rows[labels == label]
        assert abs(len(drawn) - 1000) < 5 * np.sqrt(1000 * 2 / 3)
        wanted = TRAIN[composition]
        assert set(drawn) == set(wanted)
        assert all(abs(np.sum(drawn == row) - len(drawn) / len(wanted)) < 5 * np.sqrt(len(drawn)) for row in wanted)


def test_only_the_pictures_that_are_asked_for_are_read():
    # Catches: reading the whole batch, or other places of it.
    read = []

    class Counting:
        def __getitem__(self, rows):
            read.extend(rows)
            return IMAGES[rows]

    data = make()
    images, labels = data.train_batch(data.train, jax.random.key(0), 64, np.arange(64))
    counted = dataclasses.replace(data.train, images=Counting())
    places = np.asarray([1, 63, 1, 0])
    some, some_labels = data.train_batch(counted, jax.random.key(0), 64, places)
    np.testing.assert_array_equal(some, images[places])
    np.testing.assert_array_equal(some_labels, labels[places])
    assert read == rows_of(some).tolist()


def test_queries_and_references_are_fixed_rows_in_their_order():
    data = make()
    assert rows_of(data.queries((1, 1), 2)).tolist() == [31, 33]
    assert rows_of(data.references((1, 1), 3)).tolist() == [38, 37, 36]
    with pytest.raises(errors.UserError, match="4 query pictures of a=1 b=1 are wanted and there are 3"):
        data.queries((1, 1), 4)
    with pytest.raises(errors.UserError, match="1 reference pictures of a=0 b=1 are wanted and there are 0"):
        data.references((0, 1), 1)


def test_labelled_pictures_have_their_own_attributes():
    # Catches: attributes of another row, parts confused, a draw that does not follow from the seed.
    data = make()
    for part, known in (("train", JUDGE), ("query", QUERY)):
        images, attributes = data.labelled(part, 300, 5)
        shown = {(row, tuple(values)) for row, values in zip(rows_of(images), attributes.tolist(), strict=True)}
        assert shown == {(row, composition) for composition, rows in known.items() for row in rows}
        assert attributes.dtype == np.int32
        np.testing.assert_array_equal(data.labelled(part, 300, 5)[0], images)
        assert not np.array_equal(data.labelled(part, 300, 6)[0], images)
    with pytest.raises(ValueError, match="reference"):
        data.labelled("reference", 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": TRAIN | {(1, 1): np.asarray([20])}}, "a held-out composition leaks into training: a=1 b=1"),
        ({"query": {(1, 1): np.asarray([31, 4])}}, "row 4 is in the training part and in the query part"),
        ({"reference": {(1, 1): np.asarray([20])}}, "row 20 is in the training part and in the reference part"),
        ({"reference": {(1, 1): np.asarray([38, 33])}}, "row 33 is in the query part and in the reference part"),
    ],
)
def test_leaks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_trained_class_without_pictures_is_refused():
    for empty in ({c: rows for c, rows in TRAIN.items() if c != (0, 1)}, TRAIN | {(0, 1): np.zeros(0, int)}):
        with pytest.raises(errors.UserError, match="the trained class a=0 b=1 has no picture"):
            make(train=empty)
