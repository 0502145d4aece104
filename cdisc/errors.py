"""The errors that the user can fix, as opposed to those that only a developer can.

Option classes do not know where they stand in a config: they raise a `ValueError` that begins with the field, and the
reader prefixes the path (`about`).
"""

import contextlib
import difflib
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class UserError(Exception):
    """Something that the user gave cannot be used.

    The message is one sentence: what is wrong, where, and what to do. `cdisc.main` prints it without a traceback and
    exits with code 2.
    """


@contextlib.contextmanager
def about(place: str) -> Iterator[None]:
    """Makes a `ValueError` the `UserError` whose sentence begins with `place`."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{place}{error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def require_known(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuses a value that is not one of `known`.

    Args:
      name: the option that has the value, for the message.
      value: what was given.
      known: what there is.

    Raises:
      ValueError: naming the option, the value, and the nearest known value or all of them.
    """
    if value not in known:
        names = [str(choice) for choice in known]
        hint = nearest(str(value), names) or f": use one of {', '.join(names)}."
        raise ValueError(f"{name} has {value!r}, which cdisc does not know{hint}")


def require_array(name: str, value: Any, dtype: str, axes: Sequence[int], wanted: str) -> None:
    """Refuses an argument of a public function that has another type or number of axes than the function computes with.

    Args:
      name: the argument's.
      value: what was given.
      dtype: how the name of its type must begin: "float32", "int", "key<".
      axes: how many axes it may have.
      wanted: what to give, for the message.

    Raises:
      TypeError: for another type.
      ValueError: for another number of axes.
    """
    found, shape = str(getattr(value, "dtype", type(value).__name__)), getattr(value, "shape", ())
    if not (hasattr(value, "dtype") and found.startswith(dtype)):
        raise TypeError(f"{name} is {found} of shape {shape}: give {wanted}.")
    if len(shape) not in axes:
        raise ValueError(f"{name} has the shape {shape}: give {wanted}.")


def require_positive(**values: int | Sequence[int] | None) -> None:
    """Refuses counts below 1; None is not checked.

    Raises:
      ValueError: naming the option and its value.
    """
    for name, value in values.items():
        counts = value if isinstance(value, Sequence) else () if value is None else (value,)
        if not all(map(is_count, counts)):
            raise ValueError(f"{name} is {value}: use whole numbers from 1 on.")


def short(name: object, most: int = 200) -> str:
    """A name as a sentence shows it, in one line; of one longer than `most` characters, the middle is left out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def is_count(value: Any) -> bool:
    """Whether something is a whole number from 1 on."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
