"""The composition benchmark of photographs: which combinations of attributes are seen, which held out, by which files.

Which 74 combinations the paper uses is not published (arXiv 2605.07078, table 4). The rule here is fixed by what is:

1. The classes are the combinations of the attributes that two files or more have, the most frequent first; of two that
   are equally frequent, the one that comes first in lexicographic order.
2. The `seen` most frequent ones are seen.
3. Of the others, the `held_out` most frequent ones that differ from a seen one in exactly one attribute are held out.
4. In a class, files come in the order of their official partition, if that is known, and then of the SHA-256 of seed
   and name. A seen class takes `train` and then `validation` of them; one with fewer divides them in that ratio, and
   has at least one of each. A held-out class takes at most as many as a seen one, and at most the same number n as the
   other held-out ones, the largest n with which they take no more than `held_out_files` together; first half of them or
   `query`, whichever is less, then references.
5. Of all other files, the first `judge` in the order of their SHA-256 teach the judge alone.

The paper has 26,775 training and 3,825 validation files of seen classes and 9,914 files of held-out ones. On 202,599
labels that are drawn with CelebA's frequencies, but independently within a sex (`cdisc.data.stand_in`), the rule gives
26,775, 3,825 and 9,913. Files are kept apart, not people: most queries, references and training files come from the
official training part, where one person has some twenty photographs.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cdisc import storage
from cdisc.data.compositions import Composition
from cdisc.errors import UserError

VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the benchmark; the defaults are the paper's.

    Attributes:
      seen: classes that are trained.
      held_out: classes that are not.
      train: training files of a seen class.
      validation: its other files.
      held_out_files: files of all held-out classes together, at most; but two of each at least.
      query: files of a held-out class that are composed.
      judge: files outside of all classes, for the judge.
    """

    seen: int = 51
    held_out: int = 23
    train: int = 525
    validation: int = 75
    held_out_files: int = 9_914
    query: int = 100
    judge: int = 20_000

    def __post_init__(self) -> None:
        """Refuses sizes that leave a class, or a part of it, empty."""
        for name, value in dataclasses.asdict(self).items():
            if value < (0 if name == "judge" else 1):
                raise ValueError(f"{name} is {value}: that leaves a class empty; use a whole number from 1 on.")


@dataclasses.dataclass(frozen=True)
class Class:
    """A combination of attributes and the files that show it.

    Attributes:
      composition: 0 or 1 for each attribute.
      seen: whether it is trained.
      files: names by part: "train" and "validation" of a seen class, "query" and "reference" of a held-out one.
    """

    composition: Composition
    seen: bool
    files: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the rule gave.

    Attributes:
      attributes: the F names.
      classes: the seen ones, then the held-out ones, either in lexicographic order.
      judge: files for the judge alone.
    """

    attributes: tuple[str, ...]
    classes: tuple[Class, ...]
    judge: tuple[str, ...]

    def files(self) -> Iterator[str]:
        """All files, class by class and part by part, the judge's last."""
        for one in self.classes:
            for names in one.files.values():
                yield from names
        yield from self.judge


def _neighbours(composition: Composition) -> Iterator[Composition]:
    for i, value in enumerate(composition):
        yield (*composition[:i], 1 - value, *composition[i + 1 :])


def choose(
    attributes: Sequence[str], names: Sequence[str], table: np.ndarray, partition: np.ndarray, sizes: Sizes, seed: int
) -> Manifest:
    """Applies the rule.

    Args:
      attributes: the F names.
      names: N file names.
      table: (N, F) of 0 and 1.
      partition: (N,) the official partition of each file: 0 train, 1 validation, 2 test; zeros if it is not known.
      sizes: of the benchmark.
      seed: of the order of files.

    Raises:
      UserError: if there are too few classes.
    """
    rows_of: dict[Composition, list[int]] = {}
    for row, values in enumerate(table.tolist()):
        rows_of.setdefault(tuple(values), []).append(row)
    common = [composition for composition, rows in rows_of.items() if len(rows) > 1]
    ranked = sorted(common, key=lambda composition: (-len(rows_of[composition]), composition))
    seen = ranked[: sizes.seen]
    near = {neighbour for composition in seen for neighbour in _neighbours(composition)}
    held_out = [c for c in ranked[sizes.seen :] if c in near][: sizes.held_out]
    if len(seen) < sizes.seen or len(held_out) < sizes.held_out:
        raise UserError(
            f"the attributes have {len(ranked)} combinations of two files or more, which make {len(seen)} seen and "
            f"{len(held_out)} held-out classes where {sizes.seen} and {sizes.held_out} are wanted: lower "
            "config.data.sizes or choose other attributes."
        )

    def order(row: int) -> tuple[int, bytes]:
        return int(partition[row]), hashlib.sha256(f"{seed}:{names[row]}".encode()).digest()

    whole = sizes.train + sizes.validation
    together = {n: sum(min(len(rows_of[c]), n) for c in held_out) for n in range(whole, 2, -1)}
    most = next((n for n, count in together.items() if count <= sizes.held_out_files), 2)
    classes = []
    for composition in (*sorted(seen), *sorted(held_out)):
        is_seen = composition in seen
        found = [names[row] for row in sorted(rows_of[composition], key=order)][: whole if is_seen else most]
        # At least one file in each part, of two.
        share = round(len(found) * sizes.train / whole) if is_seen else min(sizes.query, len(found) // 2)
        first = min(max(share, 1), len(found) - 1)
        parts = ("train", "validation") if is_seen else ("query", "reference")
        files = dict(zip(parts, (tuple(found[:first]), tuple(found[first:])), strict=True))
        classes.append(Class(composition, is_seen, files))
    taken = {name for one in classes for part in one.files.values() for name in part}
    others = sorted((row for row in range(len(names)) if names[row] not in taken), key=lambda row: order(row)[1])
    return Manifest(tuple(attributes), tuple(classes), tuple(names[row] for row in others[: sizes.judge]))


def check(manifest: Manifest, composition_of: Mapping[str, Composition]) -> None:
    """Makes sure that a manifest leaks nothing and agrees with the files' attributes.

    Args:
      manifest: what to check.
      composition_of: for each file its attributes.

    Raises:
      UserError: naming the first leak or disagreement.
    """

    def said(composition: Composition) -> str:
        return ", ".join(itertools.compress(manifest.attributes, composition)) or "of no attribute"

    twice = [name for name, count in Counter(manifest.files()).items() if count > 1]
    if twice:
        raise UserError(f"the manifest leaks: {twice[0]} is in two of its parts.")
    compositions = Counter(one.composition for one in manifest.classes)
    again = [composition for composition, count in compositions.items() if count > 1]
    if again:
        raise UserError(f"the manifest leaks: two of its classes have the attributes {said(again[0])}.")
    near = {n for one in manifest.classes if one.seen for n in _neighbours(one.composition)}
    for one in manifest.classes:
        if not one.seen and one.composition not in near:
            raise UserError(f"no seen class of the manifest is one attribute away from {said(one.composition)}.")
        for part, names in one.files.items():
            if not names:
                raise UserError(f"the class {said(one.composition)} of the manifest has no {part} file.")
            for name in names:
                if composition_of.get(name) != one.composition:
                    found = f"has {said(composition_of[name])}" if name in composition_of else "is not there"
                    raise UserError(
                        f"the manifest has {name} in the class {said(one.composition)}, and that file {found}: the "
                        "manifest belongs to other data."
                    )
    unknown = [name for name in manifest.judge if name not in composition_of]
    if unknown:
        raise UserError(f"the manifest names {unknown[0]}, which has no attributes: it belongs to other data.")


def _content(manifest: Manifest) -> dict[str, Any]:
    classes = [
        {
            "attributes": [name for name, value in zip(manifest.attributes, one.composition, strict=True) if value],
            "seen": one.seen,
            "files": {part: list(names) for part, names in one.files.items()},
            "sha256": hashlib.sha256(json.dumps(list(one.files.values())).encode()).hexdigest(),
        }
        for one in manifest.classes
    ]
    return {
        "version": VERSION,
        "attributes": list(manifest.attributes),
        "classes": classes,
        "judge": list(manifest.judge),
    }


def fingerprint(manifest: Manifest) -> str:
    """SHA-256 of the manifest in hexadecimal; the same before and after writing."""
    return hashlib.sha256(json.dumps(_content(manifest), sort_keys=True).encode()).hexdigest()


def write(path: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest as JSON, with its fingerprint.

    Raises:
      UserError: if it cannot be written.
    """
    text = json.dumps(_content(manifest) | {"sha256": fingerprint(manifest)}, indent=1) + "\n"
    storage.write_text(path, text, "give another --config.data.manifest")


def read(path: pathlib.Path) -> Manifest:
    """Reads what `write` wrote.

    Raises:
      UserError: if the file cannot be read, was changed, or comes from another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError(f"{path} has version {content['version']} where {VERSION} is expected: write it anew.")
        names = tuple(content["attributes"])
        classes = tuple(
            Class(
                tuple(int(name in one["attributes"]) for name in names),
                bool(one["seen"]),
                {part: tuple(files) for part, files in one["files"].items()},
            )
            for one in content["classes"]
        )
        manifest = Manifest(names, classes, tuple(content["judge"]))
        written = content["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest ({error}): give another config.data.manifest, or none.") from error
    if fingerprint(manifest) != written:
        raise UserError(f"{path} is not what was written: its fingerprint differs; fetch it anew.")
    return manifest
