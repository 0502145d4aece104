from cdisc import errors


def test_nearest():
    assert errors.nearest("discovr", ("pretrain", "discover")) == "; did you mean 'discover'?"
    assert errors.nearest("zzz", ("pretrain", "discover")) == ""
