"""What is taken from a data set before work begins, and how often it is asked."""

import dataclasses

import numpy as np
import pytest
from commands import config_of

from cdisc.app import run
from cdisc.app.config import read
from cdisc.data import planar
from cdisc.errors import UserError


@pytest.fixture
def asked(monkeypatch):
    """What `prepare` asks of the data of a mixture."""
    asked = []
    load = planar.load

    def listening(config):
        dataset = load(config)

        def part(name):
            def of(composition, n):
                asked.append((name, composition))
                return getattr(dataset, name)(composition, n)

            return of

        return dataclasses.replace(dataset, queries=part("queries"), references=part("references"))

    monkeypatch.setattr(planar, "load", listening)
    return asked


@pytest.mark.parametrize("count", [1, 4, 11])
def test_every_composition_is_asked_for_once(asked, tmp_path, count):
    # Catches: the data asked again for every query (hours where pictures are read), a composition's pictures swapped
    # or repeated, another order.
    config = config_of("mixture.py")
    config.evaluate.num_queries = count
    this = run.prepare(read(config), tmp_path, [])
    held_out = this.dataset.split.held_out
    assert len(held_out) == 4
    order = np.random.default_rng(config.seed).permutation(4)
    chosen = [held_out[order[i % 4]] for i in range(count)]
    assert [query.composition for query in this.queries] == chosen
    assert sorted(asked) == sorted((part, c) for part in ("queries", "references") for c in set(chosen))
    for i, query in enumerate(this.queries):
        np.testing.assert_array_equal(query.image, this.dataset.queries(chosen[i], 3)[i // 4])
        assert query.name.endswith(f" ({i // 4 + 1})") == (i >= 4)


def test_what_needs_no_data_is_checked_before_they_are_loaded(monkeypatch, tmp_path):
    # Catches: minutes of decoding before a mistyped number is reported.
    config = config_of("mixture.py")
    monkeypatch.setattr(planar, "load", lambda config: pytest.fail("the data were loaded"))
    config.sampling.num_steps = 1001
    with pytest.raises(UserError, match=r"config\.sampling\.num_steps has 1001"):
        run.prepare(read(config), tmp_path, [])
    config.diffusion.beta_end = 2.0
    with pytest.raises(UserError, match=r"config\.diffusion\.beta_end is 2"):
        run.prepare(read(config), tmp_path, [])


def test_a_network_that_cannot_be_sampled(tmp_path):
    # Catches: a traceback, and an option without its section.
    config = config_of("colormnist.py", "tiny")
    config.network.time_embedding_type = "fourier"
    with pytest.raises(UserError, match=r"^config\.network\.time_embedding_type is 'fourier', which takes"):
        run.prepare(read(config), tmp_path, [])


def test_a_start_at_parts_that_there_are_none_of(tmp_path):
    # Catches: the embedding of an exact mixture, its weights, taken for a sum; a traceback after hours of training.
    config = config_of("mixture.py")
    level = {"pool": "query", "start": "composed", "steps": 1, "batch_size": 1, "embedding_learning_rate": 1e-3}
    config.adapt.levels = {"new": level}
    with pytest.raises(UserError, match=r"^config\.adapt\.levels\.new\.start is 'composed', and there are no classes"):
        run.prepare(read(config), tmp_path, [])


def test_pictures_of_another_size_than_the_network_s(tmp_path):
    # Catches: a network that is trained on one size, planned for another and exported as if it were that one's.
    config = config_of("colormnist.py", "tiny")
    config.network.sample_size = 64
    with pytest.raises(UserError, match=r"are for pictures of 64x64x3, and those of colormnist are 32x32x3"):
        run.prepare(read(config), tmp_path, [])
    for file in ("celeba.py", "avatars.py", "letters.py"):
        config = config_of(file)
        config.data.size = 96
        assert config.network.sample_size == 96
