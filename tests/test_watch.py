"""Traces and TensorBoard, and that nothing happens where nobody asked."""

import contextlib
import gzip
import importlib.util
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.app import watch


@pytest.mark.parametrize(
    ("count", "items", "expected"),
    [
        (2, "abcde", "a [ b c ] d e"),
        (9, "abc", "a [ b c ]"),
        (1, "a", "[ a ]"),
        (1, "", ""),
    ],
)
def test_which_items_are_traced(monkeypatch, tmp_path, count, items, expected):
    # Catches: tracing the compilation of the first item, a trace that begins or ends one item off or never ends.
    told = []

    @contextlib.contextmanager
    def trace(folder):
        told.append("[")
        yield
        told.append("]")

    monkeypatch.setattr(jax.profiler, "trace", trace)
    for item in watch.traced(items, tmp_path, count):
        told.append(item)
    assert " ".join(told) == expected


def test_nothing_is_traced_unasked(monkeypatch):
    monkeypatch.setattr(jax.profiler, "trace", None)
    assert list(watch.traced("abc", None)) == ["a", "b", "c"]


def test_a_trace_holds_all_that_its_items_set_going(tmp_path, capsys):
    # Catches: stopping before the device is done with what it was given.
    @jax.jit
    def seen_in_the_trace(x):
        return jax.lax.fori_loop(0, 30, lambda _, y: jnp.tanh(y @ y), x)

    x = jnp.ones((300, 300))
    for _ in watch.traced(range(2), tmp_path):
        x = seen_in_the_trace(x)
    assert x.is_ready()
    (trace,) = tmp_path.glob("plugins/profile/*/*.trace.json.gz")
    assert b"seen_in_the_trace" in gzip.decompress(trace.read_bytes())
    assert capsys.readouterr().out == f"a trace is in {tmp_path}\n"


def test_a_tensorflow_that_cannot_be_used_ends_no_training(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    watch.Board(tmp_path / "board").scalars([{"step": 1, "loss": 0.5}])
    assert "nothing is written for TensorBoard: TensorFlow cannot be used" in " ".join(capsys.readouterr().err.split())


def test_without_tensorflow_nothing_is_written_or_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else object())
    board = watch.Board(tmp_path / "board")
    board.scalars([{"step": 1, "loss": 0.5}])
    board.image(1, "samples", np.zeros((2, 2, 4), np.uint8))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_a_board_keeps_what_it_is_given(monkeypatch, tmp_path):
    # Catches: a step among the figures, all rows at one step, TensorFlow left to take the GPUs, nothing flushed.
    told = []

    class SummaryWriter:
        def __init__(self, folder):
            told.append(folder)

        def write_scalars(self, step, values):
            told.append((step, values))

        def write_images(self, step, values):
            told.append((step, {name: value.shape for name, value in values.items()}))

        def flush(self):
            told.append("flush")

    hidden = types.SimpleNamespace(set_visible_devices=lambda *given: told.append(given))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=hidden))
    monkeypatch.setitem(sys.modules, "clu.metric_writers", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "environ", {})
    board = watch.Board(tmp_path)
    board.scalars([{"step": 1, "loss": 0.5, "grad_norm": 2.0}, {"step": 2, "loss": 0.25, "grad_norm": 1.0}])
    board.image(2, "samples", np.zeros((3, 5, 4), np.uint8))
    assert told == [
        ([], "GPU"),
        str(tmp_path),
        (1, {"loss": 0.5, "grad_norm": 2.0}),
        (2, {"loss": 0.25, "grad_norm": 1.0}),
        "flush",
        (2, {"samples": (1, 3, 5, 4)}),
        "flush",
    ]
