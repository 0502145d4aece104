"""What is set before JAX starts: the compiler's options, by what is installed, and never against the person."""

import importlib.metadata
import importlib.util
import os
import pwd

import pytest

from cdisc import runtime
from cdisc.errors import UserError


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


def test_compilations_are_kept_where_they_can_be(monkeypatch, tmp_path, capsys):
    # Catches: a run that ends for want of a home, or fills its output with JAX's warnings; a place that was given.
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    for given, root, expected in (
        (None, str(tmp_path / "cache"), str(tmp_path / "cache" / "cdisc" / "xla")),
        (str(tmp_path / "own"), "/proc/none", str(tmp_path / "own")),
        ("", "/proc/none", ""),
        ("gs://bucket/xla", "/proc/none", "gs://bucket/xla"),
    ):
        monkeypatch.delenv(name, raising=False) if given is None else monkeypatch.setenv(name, given)
        monkeypatch.setenv("XDG_CACHE_HOME", root)
        runtime.configure()
        assert os.environ[name] == expected
    assert (os.environ["JAX_ENABLE_COMPILATION_CACHE"], capsys.readouterr().err) == ("true", "")
    monkeypatch.delenv(name)
    runtime.configure()
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    error = capsys.readouterr().err
    assert error.startswith("cdisc: warning: every run compiles anew: /proc/none/cdisc/xla cannot be written (")
    assert error.endswith(": set JAX_COMPILATION_CACHE_DIR to another folder.\n")


def test_where_caches_are(monkeypatch):
    # Catches: a home that is asked for where none is needed, a relative folder, which the standard has ignored.
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert str(runtime.cache_folder("xla")) == "/caches/cdisc/xla"
    for given in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        with pytest.raises(
            UserError, match=r"^this user has no home folder for caches: set XDG_CACHE_HOME to a folder"
        ):
            runtime.cache_folder("xla")
        with monkeypatch.context() as patch:
            patch.setenv("HOME", "/home/me")
            assert str(runtime.cache_folder("xla")) == "/home/me/.cache/cdisc/xla"
