"""Which combinations of attributes are trained, and which are held out: the split is data.

A *factor* is an attribute with finitely many values (digit colour: cyan, green, ...). A *composition* gives each factor
a value, as a tuple of value indices. The trained compositions, in lexicographic order, are the classes of the denoiser.
"""

import dataclasses
import difflib
import hashlib
import itertools
import shlex
from collections.abc import Iterable, Sequence

import numpy as np

from cdisc import errors

Composition = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Factors:
    """The attributes and the values that each of them can take.

    Attributes:
      names: F names, such as ("digit", "digit_colour", "background"); none where nothing is known of the pictures.
      values: For each factor the names of its values.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        """Refuses factors that could not be told apart."""
        if len(self.names) != len(self.values):
            raise ValueError(f"{len(self.names)} factor names for {len(self.values)} lists of values")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two factors share a name: {self.names}")
        for name, values in zip(self.names, self.values, strict=True):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"the values of {name} are empty or repeat: {values}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each of them has."""
        return tuple(map(len, self.values))


@dataclasses.dataclass(frozen=True)
class CompositionSplit:
    """Compositions of which some are trained and the others are not.

    Attributes:
      factors: The attributes.
      trained: The compositions that training shows, in lexicographic order; the position is the class index.
      held_out: The ones that it must not show, in lexicographic order.
    """

    factors: Factors
    trained: tuple[Composition, ...]
    held_out: tuple[Composition, ...]


def order(name: str, count: int) -> list[int]:
    """The numbers below `count` in the order of the SHA-256 of name and number: another one for every name."""
    return sorted(range(count), key=lambda number: hashlib.sha256(f"{name}:{number}".encode()).digest())


def all_compositions(factors: Factors) -> tuple[Composition, ...]:
    """Every composition, in lexicographic order of the value indices."""
    return tuple(itertools.product(*(range(len(values)) for values in factors.values)))


def _index(name: str, known: Sequence[str], what: str, text: str) -> int:
    """The position of `name` in `known`, or a `UserError` that offers the nearest name."""
    if name in known:
        return known.index(name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise errors.UserError(
        f'"{text}" names the {what} "{name}", which does not exist: did you mean "{near}"? '
        f"(There are {', '.join(known)}.)"
    )


def parse(factors: Factors, text: str) -> tuple[int | None, ...]:
    """Reads a partial assignment such as "digit_colour=cyan background=deep_red", words with spaces in quotes.

    Returns:
      For each factor the index of its value, or None where the text leaves the factor open.

    Raises:
      UserError: For an unknown factor or value, a factor given twice, or text that is no assignment.
    """
    assignment: list[int | None] = [None] * len(factors.names)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise errors.UserError(f"{text} cannot be read as an assignment of attributes ({error}): mend it.") from error
    if not words:
        raise errors.UserError(
            f'an assignment of attributes is empty: write it like "{factors.names[0]}={factors.values[0][0]}".'
        )
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise errors.UserError(
                f'"{text}" has the word "{word}" without "=": write factor=value pairs between spaces, those that have '
                "spaces themselves in quotes."
            )
        factor = _index(name, factors.names, "factor", text)
        if assignment[factor] is not None:
            raise errors.UserError(f'"{text}" gives the factor "{name}" twice: give it once.')
        assignment[factor] = _index(value, factors.values[factor], f"{name} value", text)
    return tuple(assignment)


def matching(
    factors: Factors, assignments: Sequence[str], known: Iterable[Composition] | None = None
) -> tuple[Composition, ...]:
    """The compositions, of all or of `known`, that agree with one of the partial assignments, as `parse` reads them.

    Returns:
      Them, in lexicographic order.

    Raises:
      UserError: If an assignment cannot be read.
    """
    rules = [parse(factors, text) for text in assignments]

    def agrees(composition: Composition) -> bool:
        return any(
            all(wanted is None or wanted == value for wanted, value in zip(rule, composition, strict=True))
            for rule in rules
        )

    return tuple(c for c in (all_compositions(factors) if known is None else sorted(known)) if agrees(c))


def split(factors: Factors, held_out: Sequence[str], known: Iterable[Composition] | None = None) -> CompositionSplit:
    """Holds out every composition that matches one of the partial assignments.

    Args:
      factors: The attributes.
      held_out: Partial assignments as `parse` reads them; each holds out all compositions that agree with it.
      known: The compositions that there are; all that the factors allow, if it is not given.

    Returns:
      The split.

    Raises:
      UserError: If an assignment cannot be read or matches nothing, nothing is held out, or some value of a factor is
        never trained (a value that training never shows cannot be composed).
    """
    known = all_compositions(factors) if known is None else tuple(sorted(known))
    found = {text: matching(factors, (text,), known) for text in held_out}
    left_out = tuple(sorted(set().union(*found.values())))
    trained = tuple(sorted(set(known) - set(left_out)))
    example = f"such as ({describe(factors, known[-1])!r},)"
    for text, matches in found.items():
        if not matches:
            raise errors.UserError(
                f'"{text}" in config.data.held_out matches none of the data: name what is there, {example}.'
            )
    if not left_out:
        raise errors.UserError(f"the split holds out no composition: set config.data.held_out to some, {example}.")
    for factor, (name, values) in enumerate(zip(factors.names, factors.values, strict=True)):
        for index, value in enumerate(values):
            if not any(c[factor] == index for c in trained):
                raise errors.UserError(
                    f"the split holds out every composition with {name}={value}, so it is never trained: "
                    "hold out fewer compositions in held_out."
                )
    return CompositionSplit(factors=factors, trained=trained, held_out=left_out)


def label_of(split: CompositionSplit, composition: Composition) -> int:
    """The class index of a trained composition; ValueError for any other."""
    try:
        return split.trained.index(tuple(composition))
    except ValueError:
        raise ValueError(f"{describe(split.factors, composition)} is no trained composition") from None


def attributes(factors: Factors, composition: Composition) -> dict[str, str]:
    """The composition in words: factor name to value name."""
    return {name: values[index] for name, values, index in zip(factors.names, factors.values, composition, strict=True)}


def describe(factors: Factors, composition: Composition) -> str:
    """The composition as text that `parse` reads back."""
    return shlex.join(f"{name}={value}" for name, value in attributes(factors, composition).items())


def title(factors: Factors, composition: Composition) -> str:
    """The composition in few words: the values, and of a yes or no the factor's name or nothing."""
    values = attributes(factors, composition).items()
    words = [name if value == "yes" else value for name, value in values if value != "no"]
    return " ".join(words) or "nothing"


def assert_no_held_out(split: CompositionSplit, compositions: np.ndarray) -> None:
    """Raises ValueError naming the leak if any row of `compositions` (N, F) is not a trained composition."""
    trained = set(split.trained)
    for row in np.unique(np.asarray(compositions), axis=0):
        composition = tuple(int(value) for value in row)
        if composition in trained:
            continue
        if composition in split.held_out:
            raise ValueError(f"a held-out composition leaks into training: {describe(split.factors, composition)}")
        raise ValueError(f"training holds {composition}, which is no composition of {split.factors.names}")
