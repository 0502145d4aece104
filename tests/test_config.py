import dataclasses

import ml_collections
import pytest

from cdisc import storage
from cdisc.app import config
from cdisc.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    steps: int
    rate: float = 0.5
    sizes: tuple[int, ...] = ()

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps is below zero: raise it.")


def test_a_section_as_options():
    # Catches: passing ignored fields on, leaving lists as they are (unhashable), losing defaults.
    section = ml_collections.ConfigDict({"steps": 3, "sizes": [1, 2], "kind": "x"})
    options = config.parse(Options, section, "train", ignore=("kind",))
    assert options == Options(steps=3, rate=0.5, sizes=(1, 2))
    assert hash(options) == hash(Options(steps=3, sizes=(1, 2)))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"steps": 3, "rates": 1.0}, r"^config\.train\.rates does not exist; did you mean 'rate'\?$"),
        ({"steps": 3, "zebra": 1.0}, r"^config\.train\.zebra does not exist$"),
        ({"rate": 1.0}, r"^config\.train\.steps is missing: add it to the config file\.$"),
        ({"steps": -1}, r"^config\.train\.steps is below zero: raise it\.$"),
        ({"steps": "many"}, r"^config\.train cannot be used: .*\.$"),
    ],
)
def test_options_are_checked(section, message):
    with pytest.raises(UserError, match=message):
        config.parse(Options, section, "train")


def make_config():
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": {"name": "colormnist", "held_out": ("a=b",)},
            "diffusion": {"num_timesteps": 10},
            "network": {"kind": "unet"},
            "pretrain": {
                "steps": 5,
                "from_scratch": True,
                "bundle": "",
                "save_every": 2,
                "keep": 2,
                "samples_every": 2,
                "result": "last",
                "seed": 0,
            },
            "discover": {"probes": 2},
        }
    )


def test_digest():
    # The oracle is sha256 of '{"a": [1, 2], "b": null}' by another tool (sha256sum).
    expected = "14265913f60ea6d8fd54c743c5beb66818c144bfe337a19ea9782429eed31287"
    assert storage.digest({"b": None, "a": (1, 2)}) == storage.digest({"a": [1, 2], "b": None}) == expected


@pytest.mark.parametrize(
    ("section", "field", "value", "same"),
    [
        ("data", "held_out", ("a=c",), False),
        ("diffusion", "num_timesteps", 11, False),
        ("network", "kind", "exact", False),
        ("pretrain", "steps", 6, False),
        ("pretrain", "seed", 1, False),
        ("pretrain", "from_scratch", False, True),
        ("pretrain", "bundle", "small", True),
        ("pretrain", "save_every", 3, True),
        ("pretrain", "keep", 3, True),
        ("pretrain", "samples_every", 3, True),
        ("pretrain", "result", "best", True),
        ("pretrain", "accumulate", 2, True),
        ("network", "remat", True, True),
        ("discover", "probes", 3, True),
        ("data", "cache", "elsewhere", True),
    ],
)
def test_backbone_digest_follows_what_decides_the_weights(section, field, value, same):
    # Catches: any section or field added to or taken from the digest.
    changed = make_config()
    changed[section][field] = value
    assert (config.backbone_digest(changed) == config.backbone_digest(make_config())) is same


def test_flatten():
    assert config.flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": {}}) == {"a.b.c": 1, "a.d": [2]}


def test_differences():
    # Catches: comparing one way only, or tuples with the lists that JSON makes of them.
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": 1}
    new = {"a": {"b": 2, "c": (1, 2)}, "new": 1}
    assert config.differences(old, new) == ["a.b", "gone", "new"]
    assert config.differences(old, old) == []
