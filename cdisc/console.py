"""The one place that talks to the user: lines, progress bars, and the sentence that ends a failed run."""

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import tqdm

from cdisc import signals

_Item = TypeVar("_Item")

_muted = False


def mute() -> None:
    """From now on only `fail` is heard: another process of the run does the talking."""
    global _muted
    _muted = True


def say(text: str) -> None:
    """Prints one line."""
    if _muted:
        return
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def warn(text: str) -> None:
    """Prints one line to standard error."""
    if _muted:
        return
    tqdm.tqdm.write(f"cdisc: warning: {text}", file=sys.stderr)


def fail(text: str) -> None:
    """Prints the sentence that ends a run."""
    print(f"cdisc: {text}", file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Silences the libraries' chatter, so that cdisc's lines can be read."""
    for name in ("jax", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It warns of a GPU or TPU that the installed JAX cannot use.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # Orbax logs, with a traceback, errors that it also raises; through absl, too, whose `app.run` resets its level.
    logging.getLogger("orbax").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: record.levelno >= logging.CRITICAL)
    # Where Orbax could not write one array, its tasks for the others stay, and report to a loop that has ended.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unless_too_late


def _unless_too_late(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def progress(
    items: Iterable[_Item], what: str, total: int | None = None, first: int = 0, stops: bool = True
) -> Iterator[_Item]:
    """Yields `items` with a progress bar on a terminal, and a line now and then elsewhere.

    Args:
      items: the work to do.
      what: the bar's label.
      total: how many items there are in all; None takes the length of `items`.
      first: how many of them an earlier run has done.
      stops: whether a run that is asked to stop does so between two items; if not, the loop sees to it by itself.

    Raises:
      Stopped: if it does.
    """
    if total is None:
        items = list(items)
        total = first + len(items)
    if sys.stderr.isatty() and not _muted:
        items = tqdm.tqdm(items, desc=what, total=total, initial=first, leave=False, dynamic_ncols=True)
    told, last = first, time.monotonic()
    for done, item in enumerate(items, start=first):
        if stops:
            signals.obey()
        now = time.monotonic()
        if done > told and now - last >= 20.0 and not isinstance(items, tqdm.tqdm):
            # The current speed: the first item may have taken a minute to compile.
            each = (now - last) / (done - told)
            rate = f"{each:.3g} s each" if each > 1.0 else f"{1.0 / each:.3g} a second"
            say(f"  {what}: {done}/{total}, {rate}, {tqdm.tqdm.format_interval(each * (total - done))} left")
            told, last = done, now
        yield item
