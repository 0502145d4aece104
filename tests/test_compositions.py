import itertools

import numpy as np
import pytest

from cdisc import errors
from cdisc.data import compositions

FACTORS = compositions.Factors(
    names=("shape", "colour", "size"), values=(("disc", "square"), ("red", "green", "blue"), ("small", "large"))
)


def test_split_partitions_all_compositions_by_the_rules():
    split = compositions.split(FACTORS, ("shape=disc colour=red", "colour=blue size=large"))
    expected = {c for c in itertools.product(range(2), range(3), range(2)) if c[:2] == (0, 0) or c[1:] == (2, 1)}
    assert set(split.held_out) == expected
    assert set(split.trained) | set(split.held_out) == set(compositions.all_compositions(FACTORS))
    assert len(split.trained) + len(split.held_out) == 12
    assert list(split.trained) == sorted(split.trained)
    assert list(split.held_out) == sorted(split.held_out)


def test_matching_takes_what_agrees_with_any_of_the_assignments():
    chosen = compositions.matching(FACTORS, ("size=large colour=blue", "shape=disc colour=red size=small"))
    assert chosen == ((0, 0, 0), (0, 2, 1), (1, 2, 1))
    assert compositions.matching(FACTORS, ("colour=green", "colour=green size=small")) == tuple(
        itertools.product((0, 1), (1,), (0, 1))
    )


def test_order_of_the_rules_and_of_their_words_is_irrelevant():
    assert compositions.split(FACTORS, ("shape=disc colour=red", "size=large colour=blue")) == compositions.split(
        FACTORS, ("colour=blue size=large", "colour=red shape=disc")
    )


def test_label_is_the_position_among_the_trained():
    split = compositions.split(FACTORS, ("shape=disc colour=red",))
    # (0, 0, *) are held out, so (0, 1, 0) is the first class.
    assert compositions.label_of(split, (0, 1, 0)) == 0
    assert [compositions.label_of(split, c) for c in split.trained] == list(range(10))
    with pytest.raises(ValueError, match="shape=disc colour=red size=large is no trained"):
        compositions.label_of(split, (0, 0, 1))


def test_words_and_indices_are_inverse():
    assert compositions.attributes(FACTORS, (1, 2, 0)) == {"shape": "square", "colour": "blue", "size": "small"}
    for composition in compositions.all_compositions(FACTORS):
        assert compositions.parse(FACTORS, compositions.describe(FACTORS, composition)) == composition


def test_words_with_spaces_are_read_back():
    factors = compositions.Factors(names=("hair colour", "mood"), values=(("dark red", "it's"), ("a=b", '"')))
    assert compositions.parse(factors, "'hair colour=dark red' mood=a=b") == (0, 0)
    for composition in compositions.all_compositions(factors):
        assert compositions.parse(factors, compositions.describe(factors, composition)) == composition


def test_a_split_of_what_there_is():
    factors = compositions.Factors(names=("a", "b"), values=(("x", "y"), ("x", "y", "z")))
    known = [(1, 2), (0, 1), (1, 0), (0, 0), (1, 1)]
    split = compositions.split(factors, ("a=y b=x",), known)
    assert (split.trained, split.held_out) == (((0, 0), (0, 1), (1, 1), (1, 2)), ((1, 0),))
    with pytest.raises(errors.UserError, match=r'"a=x b=z" .* matches none .* such as \(.a=y b=z.,\)'):
        compositions.split(factors, ("a=y b=x", "a=x b=z"), known)
    with pytest.raises(errors.UserError, match="b=z, so it is never trained"):
        compositions.split(factors, ("b=z",), known)


def test_parse_leaves_unnamed_factors_open():
    assert compositions.parse(FACTORS, " size=large  shape=disc ") == (0, None, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("color=red", 'the factor "color".*did you mean "colour"'),
        ("colour=gren", 'the colour value "gren".*did you mean "green"'),
        ("colour=red colour=blue", '"colour" twice'),
        ("colour=red disc", '"disc" without "="'),
        ("  ", "empty"),
    ],
)
def test_unreadable_assignments_are_the_persons_to_mend(text, message):
    with pytest.raises(errors.UserError, match=message):
        compositions.split(FACTORS, (text,))


def test_a_split_must_hold_something_out_and_train_every_value():
    with pytest.raises(errors.UserError, match="holds out no composition"):
        compositions.split(FACTORS, ())
    with pytest.raises(errors.UserError, match="size=large, so it is never trained"):
        compositions.split(FACTORS, ("size=large",))
    with pytest.raises(errors.UserError, match="colour=red, so it is never trained"):
        compositions.split(FACTORS, ("colour=red shape=disc", "colour=red shape=square"))


def test_leaks_are_named():
    split = compositions.split(FACTORS, ("shape=disc colour=red",))
    compositions.assert_no_held_out(split, np.asarray(split.trained))
    for held_out in split.held_out:
        with pytest.raises(ValueError, match=f"leaks into training: {compositions.describe(FACTORS, held_out)}"):
            compositions.assert_no_held_out(split, np.asarray([*split.trained, held_out]))
    with pytest.raises(ValueError, match="no composition of"):
        compositions.assert_no_held_out(split, np.asarray([(0, 3, 0)]))


@pytest.mark.parametrize(
    ("names", "values"),
    [(("a",), ()), (("a", "a"), (("x",), ("y",))), (("a",), (("x", "x"),)), (("a",), ((),))],
)
def test_ambiguous_factors_are_refused(names, values):
    with pytest.raises(ValueError, match=r"factor|values"):
        compositions.Factors(names=names, values=values)


def test_a_title_says_what_is_there():
    factors = compositions.Factors(
        names=("colour", "beard", "smile"), values=(("red", "blue"), ("no", "yes"), ("no", "yes"))
    )
    assert compositions.title(factors, (1, 1, 0)) == "blue beard"
    assert compositions.title(factors, (0, 0, 1)) == "red smile"
    yes_or_no = compositions.Factors(names=("beard",), values=(("no", "yes"),))
    assert compositions.title(yes_or_no, (0,)) == "nothing"
