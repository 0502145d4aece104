"""What the report says of a query beyond its results: how far it lies from what is trained, which methods are dials."""

import types

import numpy as np
import pytest
from commands import config_of

from cdisc.app.config import read
from cdisc.app.stages import report as stage
from cdisc.evaluation.options import Method


def test_novelty_is_told_with_the_weights_and_settings_that_it_was_measured_with():
    # Catches: settings that changed, so that no query is warned of any more; a scale that is another network's.
    content = config_of("colormnist.py", "small")
    likelihoods = stage.trained_likelihoods(read(content))
    assert likelihoods is not None
    assert likelihoods.shape == (20, len(content.discover.timesteps)) and np.isfinite(likelihoods).all()
    for section, field, value in (
        ("pretrain", "from_scratch", True),
        ("pretrain", "restore", "elsewhere"),
        ("pretrain", "bundle", "avatars_small"),
        ("discover", "floor", 1e-3),
    ):
        other = config_of("colormnist.py", "small")
        other[section][field] = value
        assert stage.trained_likelihoods(read(other)) is None


@pytest.mark.parametrize(("below", "warned"), [(0.0, False), (2.9, False), (3.1, True)])
def test_a_query_far_from_what_is_trained_is_warned_of(monkeypatch, capsys, below, warned):
    # Catches: the sign of the distance, a warning without its number, a query that failed.
    known = np.array([[1.0, 10.0], [3.0, 14.0]], np.float32)
    composed = known.mean(axis=0) - below * known.std(axis=0, ddof=1)
    monkeypatch.setattr(stage, "trained_likelihoods", lambda config: known)
    monkeypatch.setattr(stage.novelty, "composed_likelihoods", lambda query, found, options: composed)
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(discover=None),
        queries=[types.SimpleNamespace(image=np.zeros(2), name="mine.png")] * 2,
    )
    results = {"queries": [{"name": "mine.png"}, {"name": "other.png", "failed": "no mode"}]}
    (panel, failed) = stage.panels(run, [None, None], [{}, {}], results)
    assert panel.entry["novelty"] == {"score": pytest.approx(below, abs=1e-5), "trained_pictures": 2}
    assert ("3.1 standard deviations of 2" in panel.warning) == bool(panel.warning) == warned
    assert ("mine.png" in capsys.readouterr().err) == warned
    assert "novelty" not in failed.entry and not failed.warning


def test_methods_that_differ_in_guidance_alone_are_a_dial():
    # Catches: a dial of one, one in another order, methods of another level or with a teacher beside them.
    ways = {
        "strong": Method(level="embedding", guidance=3.0),
        "beside": Method(level="embedding", guidance=1.0, teacher_weight=0.4),
        "weak": Method(level="embedding", guidance=1.0),
        "lora": Method(level="lora"),
    }
    assert stage.dials(ways) == {"strong": {1.0: "weak", 3.0: "strong"}}
    assert list(stage.dials(ways)["strong"]) == [1.0, 3.0]
