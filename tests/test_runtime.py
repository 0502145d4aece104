"""What is set before JAX starts: the compiler's options, by what is installed, and never against the person."""

import importlib.metadata
import importlib.util
import os

import pytest

from cdisc import runtime


@pytest.fixture
def configured(monkeypatch):
    """`XLA_FLAGS` after `configure`, for a jaxlib version, the flags given before and the modules installed."""

    def flags_of(version="0.10.2", given="", installed=(), plugins=(), platforms=""):
        monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": version}.__getitem__)
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: {"jax_plugins": plugins}[group])
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
        monkeypatch.setenv("XLA_FLAGS", given)
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        runtime.configure()
        return os.environ["XLA_FLAGS"].split()

    return flags_of


def test_a_cpu_alone_gets_both_options(configured):
    assert configured() == [runtime._COMPILE_QUICKLY, runtime._CONVOLUTIONS]


def test_an_option_that_the_person_gave_stays_as_it_is(configured):
    given = "--xla_backend_optimization_level=3 --xla_force_host_platform_device_count=2"
    assert configured(given=given) == [*given.split(), runtime._CONVOLUTIONS]


def test_a_version_that_was_not_tried_is_not_given_the_experimental_flag(configured):
    assert configured(version="0.13.0") == [runtime._COMPILE_QUICKLY]


@pytest.mark.parametrize("found", [{"installed": ("libtpu",)}, {"installed": ("jax_plugins",)}, {"plugins": ("cuda",)}])
def test_an_accelerator_gets_no_option(configured, found):
    assert configured(**found) == []
    assert configured(**found, platforms="cpu") == [runtime._COMPILE_QUICKLY, runtime._CONVOLUTIONS]
