"""Which pictures are composed, and under which names and seeds."""

import dataclasses
import types

import numpy as np
import pytest
from PIL import Image

from cdisc.data import compositions, queries
from cdisc.errors import UserError

FACTORS = compositions.Factors(names=("digit", "bold"), values=(("zero", "one", "two"), ("no", "yes")))
HELD_OUT = ((0, 1), (1, 0), (2, 1))


def dataset(held_out=HELD_OUT):
    """Whose picture n of a composition is its values and n."""
    return types.SimpleNamespace(
        name="numbers",
        split=compositions.CompositionSplit(FACTORS, trained=(), held_out=held_out),
        queries=lambda composition, n: np.asarray([[*composition, i] for i in range(n)], np.float32),
    )


def test_each_held_out_composition_comes_once_and_then_again():
    # Catches: an order that the seed does not decide, a composition twice before another comes, one picture twice.
    found = queries.held_out(dataset(), 3, 7)
    order = [HELD_OUT[i] for i in np.random.default_rng(3).permutation(3)]
    assert [query.composition for query in found] == [*order, *order, order[0]]
    for place, query in enumerate(found):
        assert query.image.tolist() == [*query.composition, place // 3]
        title = compositions.title(FACTORS, query.composition)
        assert query.name == title + (f" ({place // 3 + 1})" if place >= 3 else "")
        assert (query.seed, query.source) == (3, "numbers, query part")
    with pytest.raises(UserError, match="no pictures of its own: give --query=PICTURE"):
        queries.held_out(dataset(()), 0, 1)


def test_a_number_of_each_composition_and_several_seeds():
    # Catches: `num_queries` in the place of `per_class`; other pictures, or the first seed, under another seed.
    found = queries.held_out(dataset(), 0, 1, per_class=2, seeds=(5, 8))
    assert [query.seed for query in found] == [5] * 6 + [8] * 6
    for one, other in zip(found[:6], found[6:], strict=True):
        assert one.name.removesuffix(", seed 5") == other.name.removesuffix(", seed 8") != one.name
        assert dataclasses.replace(one, name="", seed=0).composition == other.composition
        np.testing.assert_array_equal(one.image, other.image)
    assert sorted(query.composition for query in found[:6]) == sorted(HELD_OUT * 2)


def test_a_user_s_own_pictures(tmp_path, capsys):
    # Catches: the path for a name, another seed than the run's, a change of the picture that is not told.
    paths = []
    for size in (8, 16):
        paths.append(str(tmp_path / f"{size}.png"))
        Image.fromarray(np.full((size, size, 3), 255, np.uint8)).save(paths[-1])
    found = queries.own(paths, (8, 8, 3), 11)
    assert [(query.name, query.source, query.seed) for query in found] == [
        ("8.png", paths[0], 11),
        ("16.png", paths[1], 11),
    ]
    for query in found:
        assert query.composition is None
        np.testing.assert_array_equal(query.image, np.ones((8, 8, 3), np.float32))
    assert "16.png: it was resized from 16x16 to 8x8" in capsys.readouterr().err
    with pytest.raises(UserError, match="data are points: leave --query out"):
        queries.own(paths, (2,), 0)
