"""Ways to watch a run besides the lines it prints: TensorBoard, and traces by JAX's profiler."""

import importlib.util
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from cdisc import console

_Item = TypeVar("_Item")


class Board:
    """A folder for TensorBoard where TensorFlow and TensorBoard are installed; where they are not, it keeps nothing.

    Everything it is given is in other files too: a run does not depend on it.
    """

    def __init__(self, folder: pathlib.Path):
        self._writer: Any = None
        if all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "tensorboard")):
            # Silences its greetings, one of which is about oneDNN.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
            try:
                import tensorflow
                from clu.metric_writers import SummaryWriter

                tensorflow.config.set_visible_devices([], "GPU")  # otherwise it takes all of their memory
                self._writer = SummaryWriter(str(folder))
            except Exception as error:  # anything can be wrong with an installation that is not ours
                console.warn(f"nothing is written for TensorBoard: TensorFlow cannot be used ({error}).")

    def scalars(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Adds figures; each row has its `step`."""
        if self._writer is not None:
            for row in rows:
                values = {name: value for name, value in row.items() if name != "step"}
                self._writer.write_scalars(int(row["step"]), values)
            self._writer.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture (H, W, C) uint8."""
        if self._writer is not None:
            self._writer.write_images(step, {name: pixels[None]})
            self._writer.flush()


def traced(items: Sequence[_Item], folder: pathlib.Path | None, count: int = 1) -> Iterator[_Item]:
    """Yields `items`, and leaves a trace of the work on some of them in `folder`; with None it only yields.

    The first is left out if there are others, because that is where programs are compiled.

    Args:
      items: the work to do.
      folder: where JAX's profiler writes.
      count: how many items are traced.
    """
    if folder is None or not items:
        yield from items
        return
    first = min(1, len(items) - 1)
    yield from items[:first]
    with jax.profiler.trace(folder):
        yield from items[first : first + count]
        jax.block_until_ready(jax.live_arrays())  # a step returns long before the device is done with it
    console.say(f"a trace is in {folder}")
    yield from items[first + count :]
