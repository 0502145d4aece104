import numpy as np
import pytest

from cdisc import errors


def test_nearest():
    assert errors.nearest("discovr", ("pretrain", "discover")) == "; did you mean 'discover'?"
    assert errors.nearest("zzz", ("pretrain", "discover")) == ""


@pytest.mark.parametrize("value", [0, -1, 2.5, 2.0, True, "2", (1, 0), (50.5, 100)])
def test_counts(value):
    # Catches: a fraction that is cut off later, or for which Python has no sentence.
    errors.require_positive(a=1, b=np.int64(3), c=None, d=(1, 2))
    with pytest.raises(ValueError, match=r"^e is .*: use whole numbers from 1 on\.$"):
        errors.require_positive(e=value)


def test_a_long_name_keeps_its_ends():
    # Catches: a sentence as long as a name of thousands of characters, a short name that is cut.
    assert errors.short("a" * 200) == "a" * 200
    assert errors.short("a" * 5000 + ".png") == "a" * 100 + "..." + "a" * 96 + ".png"
    # Catches: a file's name that breaks a sentence in two, or that a terminal or UTF-8 cannot show.
    assert errors.short("a\nb\x1b[2J\udcff é 猫") == r"a\nb\x1b[2J\udcff é 猫"
