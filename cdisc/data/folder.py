"""Pictures of the user's own, labelled by a table: a line for each picture, a column for each factor."""

import dataclasses
import decimal
import hashlib
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from cdisc import storage
from cdisc.data import Dataset, cache, compositions, decoding, stored, tables
from cdisc.errors import UserError, about, require_positive, short

_VALIDATED = 8
"""Of so many pictures of a trained class, one is not trained on."""

_EXACT = decimal.Context(prec=1000)
"""As many digits as a table's cell has characters."""


def read_table(
    table: pathlib.Path, root: pathlib.Path, outside: bool = False
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Reads which picture shows what.

    Args:
      table: a table as `tables.read` reads it. Its first line names the columns: the file, then the factors.
      root: the folder that the files' names start from.
      outside: whether files may lie elsewhere: by "..", an absolute path or a link.

    Returns:
      The F names of the factors, and for each file its F values.

    Raises:
      UserError: if the table cannot be read, a line of it is wrong, a file is not there or is outside of the folder, or
        two names or values differ in no more than how they are written.
    """
    said, inside = short(table), root.resolve()
    if _place(root, str(table)) is None:
        raise UserError(
            f"{said} is not there: write a table with a first line such as file,shape,colour and then a line such as "
            "one.png,square,red for each picture."
        )
    lines = tables.read(table)
    header = lines[0].cells if lines else []
    if header and tables.PICTURE.search(header[0]):
        raise UserError(
            f"{said} begins with the picture {short(header[0])}: put a line before it that names the columns, such as "
            "file,shape,colour."
        )
    if len(lines) < 2 or len(header) < 2 or "" in header or len(set(header)) < len(header):
        raise UserError(
            f"{said} has {max(len(lines) - 1, 0)} pictures and the columns {short(', '.join(header))}: name the file "
            "and at least one factor in the first line, each once and commas between them, then give each picture a "
            "line."
        )
    values: dict[str, tuple[str, ...]] = {}
    places: set[pathlib.Path] = set()
    for number, row in lines[1:]:
        where = f"{said}, line {number}"
        if len(row) != len(header):
            raise UserError(f"{where}, has {len(row)} columns and the first line {len(header)}: give it as many.")
        if "" in row:
            raise UserError(f"{where}, has nothing in the column {header[row.index('')]}: fill it or delete the line.")
        file, place = str(pathlib.PurePath(row[0])), _place(root, row[0])
        if place is None and "\\" in file:  # as Windows writes it
            file = str(pathlib.PurePath(file.replace("\\", "/")))
            place = _place(root, file)
        if place is None:
            meant = _meant(root, file)
            near = "mend the name or delete the line." if meant is None else f"did you mean {meant}?"
            raise UserError(f"{where}, names {short(file)}, which is not in {root}: {near}")
        if not outside and not place.is_relative_to(inside):
            raise UserError(
                f"{where}, names {short(file)}, which lies outside of {root}: move it there, or allow it with "
                "--config.data.outside=True."
            )
        if place in places:
            raise UserError(f"{where}, names {short(file)} for the second time: delete one of the lines.")
        places.add(place)
        values[file] = tuple(" ".join(value.split()) for value in row[1:])
    _refuse_twins(said, "the column", header)
    for name, column in zip(header[1:], zip(*values.values(), strict=True), strict=True):
        _refuse_twins(said, f"in the column {name} the value", sorted(set(column)))
    return tuple(header[1:]), values


def _place(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Where a file is, links followed; None where there is none."""
    try:
        return (root / name).resolve(strict=True) if (root / name).is_file() else None
    except (OSError, ValueError):  # such as a name that is too long, or a loop of links
        return None


def _alike(text: str) -> str:
    """What two words share that a reader takes for the same: Red and red, dark-red and dark_red, 1 and 1.0."""
    kinds = {"Cf": "", "Pd": "-", "Pc": "-", "Zs": "-"}  # such as a soft hyphen, which nobody sees
    seen = "".join(kinds.get(unicodedata.category(c), c) for c in unicodedata.normalize("NFKC", text).casefold())
    try:
        # A column of whole numbers with a gap becomes one of decimals in a spreadsheet or in pandas.
        return str(_EXACT.add(_EXACT.create_decimal(seen), 0).normalize(_EXACT))
    except decimal.DecimalException:
        return seen


def _meant(root: pathlib.Path, file: str) -> str | None:
    """A file that is there and differs in no more than capitals and ending from one that is not."""
    try:
        beside = list((root / file).parent.iterdir())
    except (OSError, ValueError):
        return None
    stem = _alike(pathlib.PurePath(file).stem)
    near = (p.name for p in beside if _alike(p.stem) == stem and p.is_file())
    return next((str(pathlib.PurePath(file).with_name(name)) for name in near), None)


def _refuse_twins(said: str, what: str, words: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word in words:
        other = seen.setdefault(_alike(word), word)
        if other != word:
            raise UserError(f"{said} has {what} '{short(word)}' and also '{short(other)}': write them alike.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which pictures, and which of their classes are held out.

    Attributes:
      root: the pictures' folder.
      table: a CSV file in it (`read_table`).
      outside: whether the table may name pictures that lie outside of the folder.
      held_out: partial assignments such as "shape=square colour=red" (`compositions.parse`); a factor left out means
        all of its values.
      seed: of the order of a class's files.
      query: queries of each held-out class.
      reference: references of each, at least `evaluate.references` and `evaluate.samples` together.
      size: pixels a side.
      cache: the folder of the decoded pictures; empty for `pictures` in the user's cache folder.
    """

    root: str = ""
    table: str = "labels.csv"
    outside: bool = False
    held_out: tuple[str, ...] = ()
    seed: int = 0
    query: int = 8
    reference: int = 64
    size: int = 64
    cache: str = ""


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes; decodes its pictures the first time.

    A held-out class gives `query` pictures and then `reference` others, and what is left to the judge. Of a trained
    class, an eighth, but at most `query` pictures, validate; all others are trained on, the judge too.

    Args:
      config: Which.

    Returns:
      The data set, which has the folder's name. Its classes are the combinations of values that are in the table.

    Raises:
      UserError: If the folder, its table, its pictures or the split cannot be used.
    """
    with about("config.data."):
        require_positive(query=config.query, reference=config.reference, size=config.size)
    root = storage.user_path(config.root)
    if not config.root or not root.is_dir():
        raise UserError(f"config.data.root is {config.root!r}, which is no folder: set it to that of your pictures.")
    table = root / storage.user_path(config.table)
    names, values_of = read_table(table, root, config.outside)
    factors = compositions.Factors(
        names, tuple(tuple(sorted(set(column))) for column in zip(*values_of.values(), strict=True))
    )
    places = [{value: place for place, value in enumerate(values)} for values in factors.values]
    files_of: dict[compositions.Composition, list[str]] = {}
    # The order of a class's files is none that a table or a folder may have.
    for file in sorted(values_of, key=lambda file: hashlib.sha256(f"{config.seed}:{file}".encode()).digest()):
        composition = tuple(place[value] for place, value in zip(places, values_of[file], strict=True))
        files_of.setdefault(composition, []).append(file)

    def require(needed: int, chosen: Sequence[compositions.Composition], why: str) -> None:
        few = [c for c in chosen if len(files_of[c]) < needed]
        if few:
            others = f" (and too few of {len(few) - 1} more)" if few[1:] else ""
            raise UserError(
                f"{table} has {len(files_of[few[0]])} pictures of {compositions.describe(factors, few[0])}{others}, "
                f"and {why}: add pictures, or take these or a column out."
            )

    require(2, list(files_of), "a class needs 2, one to train on and one to validate")
    split = compositions.split(factors, tuple(config.held_out), files_of)
    require(
        config.query + config.reference,
        split.held_out,
        f"it is held out, where config.data.query={config.query} and config.data.reference={config.reference} are "
        "taken, which you may lower with evaluate.references and evaluate.samples",
    )
    train, query, reference, judge = {}, {}, {}, {}
    for composition in split.trained:
        found = files_of[composition]
        first = max(1, min(config.query, len(found) // _VALIDATED))
        query[composition], train[composition] = found[:first], found[first:]
    for composition in split.held_out:
        found, first, last = files_of[composition], config.query, config.query + config.reference
        query[composition], reference[composition], judge[composition] = found[:first], found[first:last], found[last:]
    files = sorted(values_of)
    stats = [(file, found.st_size, found.st_mtime_ns) for file in files for found in [(root / file).stat()]]
    made_from = {"folder": str(root.resolve()), "files": storage.digest(stats), **decoding.VERSIONS}
    kept = cache.folder(config.cache, "pictures") / storage.digest([made_from, config.size])[:16]

    def read(file: str) -> bytes:
        with (root / file).open("rb") as opened:
            return decoding.read_bytes(opened)

    images, row_of = decoding.decode_all(kept, made_from, config.size, files, lambda: read)

    def rows(of: Mapping[compositions.Composition, Sequence[str]]) -> stored.Rows:
        return {c: np.asarray([row_of[file] for file in of[c] if file in row_of], int) for c in of}

    content = [hashlib.sha256(images.data).hexdigest(), images.shape, sorted(values_of.items())]
    return stored.dataset(
        root.resolve().name,
        images,
        split,
        train=rows(train),
        query=rows(query),
        reference=rows(reference),
        judge=rows(train | judge),
        digest=storage.digest([content, config.seed, config.query, config.reference]),
    )
