"""What a configuration may hold, and what its digests see."""

import dataclasses
import pathlib
import re
import subprocess
import sys
from typing import Literal

import pytest
from commands import ROOT, config_of

from cdisc import storage
from cdisc.app import config as config_lib
from cdisc.errors import UserError
from cdisc.networks import bundled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    seed: int = 0

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}: raise it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    name: str = "x"
    whole: bool = False
    clip: float | None = 1.0
    sizes: tuple[int, ...] = ()
    colour: tuple[int, int] = (0, 0)
    which: Literal["last", "best"] = "last"
    inner: Inner = Inner()
    parts: dict[str, Inner] = dataclasses.field(default_factory=dict)


def section(content):
    return config_lib._section(Outer, {"steps": 3, **content}, "outer.")


def test_a_section_is_read_as_its_fields_are_annotated():
    # Catches: lists left as they are (unhashable), whole numbers that stay whole in a float, a default lost.
    content = {"sizes": [1, 2], "clip": 2, "colour": [1, 2], "inner": {"rate": 1}, "parts": {"a": {"rate": 0.25}}}
    found = section(content)
    assert found == Outer(
        steps=3, sizes=(1, 2), clip=2.0, colour=(1, 2), inner=Inner(rate=1.0), parts={"a": Inner(rate=0.25)}
    )
    assert type(found.clip) is type(found.inner.rate) is float
    assert section({"clip": None}).clip is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"setps": 1}, "outer.setps does not exist; did you mean 'steps'?"),
        ({"inner": {"rat": 1}}, "outer.inner.rat does not exist; did you mean 'rate'?"),
        ({"parts": {"a": {"zebra": 1}}}, "outer.parts.a.zebra does not exist"),
        ({"steps": 2.5}, "outer.steps is 2.5: use a whole number."),
        ({"steps": True}, "outer.steps is True: use a whole number."),
        ({"steps": None}, "outer.steps is None: use a whole number."),
        ({"steps": "3"}, "outer.steps is '3': use a whole number."),
        ({"whole": 1}, "outer.whole is 1: use True or False."),
        ({"name": 1}, "outer.name is 1: use text."),
        ({"clip": "wide"}, "outer.clip is 'wide': use a number."),
        ({"clip": True}, "outer.clip is True: use a number."),
        ({"clip": float("nan")}, "outer.clip is nan: use a number."),
        ({"inner": {"rate": float("nan")}}, "outer.inner.rate is nan: use a number."),
        ({"sizes": 3}, "outer.sizes is 3: use tuple[int, ...]."),
        ({"sizes": (1, 0.5)}, "outer.sizes is 0.5: use a whole number."),
        ({"colour": (1,)}, "outer.colour is (1,): use tuple[int, int]."),
        ({"which": "bset"}, "outer.which has 'bset', which cdisc does not know; did you mean 'best'?"),
        ({"inner": 3}, "outer.inner is 3: it is a section, whose fields are set one by one."),
        ({"inner": {"rate": -1.0}}, "outer.inner.rate is -1.0: raise it."),
        ({"parts": {"a": {"rate": -1}}}, "outer.parts.a.rate is -1.0: raise it."),
        ({"inner": {"seed": -1}}, "outer.inner.seed is -1: use a whole number from 0 to 4294967295."),
        ({"inner": {"seed": 2**32}}, "outer.inner.seed is 4294967296: use a whole number from 0 to 4294967295."),
    ],
)
def test_what_a_section_cannot_hold(content, message):
    # Catches: any kind of value let through, and a name without its sections or with them twice.
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        section(content)


def test_what_is_missing_and_may_not():
    with pytest.raises(ValueError, match=r"^outer\.steps is missing: add it to the config file\.$"):
        config_lib._section(Outer, {}, "outer.")


def test_a_configuration_is_its_tree_read_again():
    # Catches: a field lost or renamed on the way to the command line, a kind of section forgotten.
    for name in ("colormnist", "avatars", "letters", "celeba", "folder", "mixture", "pretrained"):
        config = config_lib.read(config_of(f"{name}.py"))
        assert config_lib.read(config_lib.tree(config)) == config
        assert config_lib.as_dict(config)["data"]["name"] in ("planar", "queries", name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "mnist"}, "config.data.name has 'mnist', .*; did you mean 'colormnist'"),
        ({"data.name": "queries"}, "config.data.backgrounds does not exist"),
        ({"seed": 2**32}, "config.seed is 4294967296: use a whole number from 0"),
        ({"evaluate.k": 100}, "config.evaluate.references is 8: precision and recall look for 100 neighbours"),
        ({"evaluate.query_only_sigma": 0.0}, "config.evaluate.query_only_sigma is 0.0: use positive numbers"),
        ({"evaluate.methods.lora.level": "lroa"}, "config.evaluate.methods.lora.level names no level: 'lroa'; did"),
        ({"evaluate.methods.lora.class_sigma_max": 0.0}, "config.evaluate.methods.lora.class_sigma_min is 0.0 and"),
        ({"sampling.clip": -1.0}, "config.sampling.clip is -1.0: use a positive number, or None"),
        ({"discover.num_experts": 9}, r"config\.discover\.num_experts is 9, more than the pool holds"),
    ],
)
def test_sections_that_cannot_be_used_or_do_not_fit_together(changes, message):
    config = config_of("colormnist.py", "tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=f"^{message}"):
        config_lib.read(config)


def test_a_size_that_the_judge_cannot_see():
    # Catches: a training of hours before its samples turn out to be none that can be judged.
    config = config_of("colormnist.py", "tiny")
    config.network.update(block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.network.update(sample_size=33, patch_size=1)
    with pytest.raises(UserError, match=r"^config\.network\.sample_size is 33: the judge of the samples needs an even"):
        config_lib.read(config)


def test_digest():
    # The oracle is sha256 of '{"a": [1, 2], "b": null}' by another tool (sha256sum).
    expected = "14265913f60ea6d8fd54c743c5beb66818c144bfe337a19ea9782429eed31287"
    assert storage.digest({"b": None, "a": (1, 2)}) == storage.digest({"a": [1, 2], "b": None}) == expected


@pytest.mark.parametrize("name", ["colormnist", "avatars", "letters"])
def test_the_backbones_that_are_bundled_were_trained_as_their_configuration_says(name):
    # Catches: a field that becomes part of the digest, and so leaves the bundled ones unused.
    config = config_lib.read(config_of(f"{name}.py", "small"))
    about = bundled.npz_about(bundled.FOLDER / f"{name}_small.npz")
    assert about["config"] == config_lib.backbone_digest(config)


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        ("data.held_out", ("digit_colour=cyan",), False),
        ("data.digit_colours.cyan", (1, 2, 3), False),
        ("diffusion.num_timesteps", 999, False),
        ("network.upsample_type", "resnet", False),
        ("network.norm_eps", 1e-4, False),
        ("pretrain.steps", 61, False),
        ("pretrain.seed", 1, False),
        ("pretrain.from_scratch", False, True),
        ("pretrain.bundle", "small", True),
        ("pretrain.restore", "elsewhere", True),
        ("pretrain.save_every", 3, True),
        ("pretrain.keep", 3, True),
        ("pretrain.samples_every", 3, True),
        ("pretrain.result", "best", True),
        ("pretrain.accumulate", 2, True),
        ("network.remat", True, True),
        ("discover.probes", 3, True),
        ("seed", 1, True),
    ],
)
def test_backbone_digest_follows_what_decides_the_weights(field, value, same):
    # Catches: any section or field added to or taken from the digest.
    config = config_of("colormnist.py", "tiny")
    before = config_lib.backbone_digest(config_lib.read(config))
    config.update_from_flattened_dict({field: value})
    assert (config_lib.backbone_digest(config_lib.read(config)) == before) is same


def test_the_configurations_can_be_imported_anywhere(tmp_path):
    # Catches: configurations that find one another only from the repository's root.
    program = "from cdisc.configs import celeba, folder, pretrained; print(celeba.get_config('avatars').network.kind)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": str(pathlib.Path(sys.executable).parent)}
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert (found.returncode, found.stdout) == (0, b"unet\n"), found.stderr
