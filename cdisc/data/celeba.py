"""CelebA: photographs of faces with forty attributes, read from the user's own copy without TensorFlow.

CelebA (Liu, Luo, Wang and Tang, ICCV 2015) is for non-commercial research and does not come with cdisc, nor is it ever
downloaded. `manifest` makes a benchmark of its attributes. The photographs that it names are decoded once, on all
cores, into a cache of bytes.
"""

import dataclasses
import hashlib
import os
import pathlib
import threading
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cdisc import console, storage
from cdisc.data import Dataset, cache, compositions, decoding, prepared, stand_in, stored, tables
from cdisc.data import manifest as manifest_lib
from cdisc.errors import UserError, about, nearest, require_positive, short

_IMAGES = ("img_align_celeba", "img_align_celeba_png")
_SPLITS = ("train", "validation", "test")

_HELP = (
    "CelebA is free for non-commercial research: take it from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (or as "
    f"jessicali9530/celeba-dataset from Kaggle) and set --config.data.root to the folder that has {_IMAGES[0]}/ or "
    "its zip, list_attr_celeba.txt and list_eval_partition.txt (or .csv). Drawn faces need no download: "
    "pip install '.[faces]' && python -m cdisc.main --config=configs/avatars.py:small --workdir=runs/avatars"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributes:
    """What the attribute file says.

    Attributes:
      files: N file names.
      names: F attributes, the ones that were asked for, in that order.
      table: (N, F) int8 of 0 and 1.
      path: the file that stands for them.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]
    table: np.ndarray
    path: pathlib.Path


def _find(root: pathlib.Path, stem: str) -> pathlib.Path | None:
    """The text file of that stem, as the authors or Kaggle name it, in `root` or its folder Anno or Eval."""
    folders = (root, root / "Anno", root / "Eval")
    return next((path for f in folders for end in ("txt", "csv") if (path := f / f"{stem}.{end}").is_file()), None)


def _stem(file: str) -> str:
    """What the files of one photograph share, be they JPEG or PNG, with or without a folder before the name."""
    return pathlib.PurePosixPath(file.replace("\\", "/")).stem


def _number(cell: str) -> float | None:
    """The number that a cell says, however pandas writes it; None if it says none."""
    try:
        return {"true": 1.0, "false": 0.0}[cell.lower()] if cell.isalpha() else float(cell)
    except (KeyError, ValueError):
        return None


def _columns(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns after the file name's, and all columns, of a .txt or a .csv of the same content.

    The authors' attribute file begins with the count, which some copies lack, and the names, their partition file with
    neither.
    """
    rows = [row.cells for row in tables.read(path)]
    count, names = None, []
    if rows and len(rows[0]) == 1 and rows[0][0].isdecimal():
        count = int(rows.pop(0)[0])
    if rows and _number(rows[0][-1]) is None:
        names = rows.pop(0)
    width = len(rows[0]) if rows else 0
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path} has the column {short(twice)} twice: fetch it anew.")
    if len(names) == width:  # the authors give the file's column no name
        names = names[1:]
    wanted = 1 + len(names) if names else 2
    wrong = next((row for row in rows if len(row) != wanted), None)
    if wrong is not None:
        raise UserError(
            f"{path} has {len(wrong)} columns at {short(wrong[0])} where {wanted} are expected: fetch it anew."
        )
    if not rows or count not in (None, len(rows)):
        said = f" and says {count}" if count is not None else ""
        raise UserError(f"{path} has {len(rows)} lines of files{said}: fetch it anew.")
    return names, [list(column) for column in zip(*rows, strict=True)]


def _require(wanted: Sequence[str], names: Sequence[str], path: pathlib.Path) -> None:
    """Refuses attributes that a copy does not have, and having none or one twice."""
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"config.data.attributes is {tuple(wanted)}: name at least one, and each once.")
    for name in wanted:
        if name not in names:
            hint = nearest(name, names) or f": it has {', '.join(names)}"
            raise UserError(f"config.data.attributes has {name!r}, which {path} has not{hint}")


def read_attributes(root: pathlib.Path, wanted: Sequence[str]) -> Attributes:
    """Reads `list_attr_celeba.txt`, or the .csv that Kaggle makes of it.

    Args:
      root: the folder of the user's copy.
      wanted: names of attributes.

    Raises:
      UserError: if there is no such file, it is damaged, or it lacks an attribute.
    """
    path = _find(root, "list_attr_celeba")
    if path is None:
        raise UserError(
            f"{root} has no list_attr_celeba.txt or .csv, nor have its folders Anno and Eval, nor {prepared.INFO} of a "
            f"prepared celeb_a. {_HELP}"
        )
    names, (files, *columns) = _columns(path)
    _require(wanted, names, path)
    chosen = [columns[names.index(name)] for name in wanted]
    values = {value: _number(value) for value in {value for column in chosen for value in column}}
    if not (set(values.values()) <= {1.0, -1.0} or set(values.values()) <= {1.0, 0.0}):
        wrong = min(value for value, number in values.items() if number not in (1.0, -1.0))
        raise UserError(f"{path} has the value {short(wrong)!r}: attributes are 1 or -1; fetch it anew.")
    if len(set(map(_stem, files))) < len(files):
        raise UserError(f"{path} names a file twice: fetch it anew.")
    table = np.stack([[values[value] == 1.0 for value in column] for column in chosen], axis=1).astype(np.int8)
    return Attributes(tuple(files), tuple(wanted), table, path)


def read_partition(root: pathlib.Path, files: Sequence[str]) -> np.ndarray:
    """The official partition (N,) of the files: 0, 1 or 2; zeros, and a warning, where there is no such file.

    Raises:
      UserError: if the file is damaged, or about other files.
    """
    path = _find(root, "list_eval_partition")
    if path is None:
        console.warn(
            f"{root} has no list_eval_partition.txt or .csv: the benchmark has the same classes without it, but other "
            "training files and queries."
        )
        return np.zeros(len(files), np.int8)
    _, (named, *parts) = _columns(path)
    known = dict(zip(map(_stem, named), map(_number, parts[0]), strict=True))
    if len(known) < len(named):
        raise UserError(f"{path} names a file twice: fetch it anew, or take it away.")
    found = [known.get(_stem(name)) for name in files]
    missing = next((name for name, part in zip(files, found, strict=True) if part not in (0, 1, 2)), None)
    if missing is not None:
        raise UserError(f"{path} gives no partition 0, 1 or 2 for {missing}: fetch it anew, or take it away.")
    return np.asarray(found, np.int8)


def open_images(root: pathlib.Path, files: Sequence[str]) -> Callable[[str], bytes]:
    """A function from a file's name to its bytes, for use in many threads.

    Args:
      root: has the folder `img_align_celeba` (Kaggle has it twice) or `img_align_celeba.zip`, or those of the PNG
        copies, `img_align_celeba_png`.
      files: what will be read. A picture of another format stands for one that is not there.

    Raises:
      UserError: if there is neither, one of the files is not in it, or an archive has two that may be meant.
    """
    around = [root / name for name in _IMAGES] + [root / "Img" / name for name in _IMAGES]
    folders = [folder for one in around for folder in (one / one.name, one) if folder.is_dir()]
    archives = [archive for one in around if (archive := one.with_name(f"{one.name}.zip")).is_file()]
    complaint = f"{root} has neither the folder {_IMAGES[0]} nor {_IMAGES[0]}.zip. {_HELP}"
    for place in reversed((*folders, *archives)):
        members, read = _in_archive(place) if place in archives else _in_folder(place)
        by_stem: dict[str, list[_Member]] = {}
        for member in members:
            if tables.PICTURE.search(member.path.name):
                by_stem.setdefault(member.path.stem, []).append(member)
        missing = [name for name in files if _stem(name) not in by_stem]
        if not missing:
            chosen = {name: _meant(name, by_stem[_stem(name)], place).name for name in files}
            return lambda name: read(chosen[name])
        complaint = (
            f"{place} lacks {len(missing)} of the {len(files)} images of the benchmark, such as {short(missing[0])}: "
            "unpack or fetch it anew."
        )
    raise UserError(complaint)


class _Member(NamedTuple):
    """A picture in a folder or an archive: where, what reads it, and what those of the same content share."""

    path: pathlib.PurePosixPath
    name: Any
    content: Any


def _in_folder(folder: pathlib.Path) -> tuple[list[_Member], Callable[[Any], bytes]]:
    """The files of a folder, not of those in it, and what reads one."""

    def read(name: str) -> bytes:
        with (folder / name).open("rb") as file:
            return decoding.read_bytes(file)

    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return [_Member(pathlib.PurePosixPath(name), name, name) for name in names], read


def _in_archive(archive: pathlib.Path) -> tuple[list[_Member], Callable[[Any], bytes]]:
    """The files of an archive, and what reads one."""
    try:
        # One for all threads: its index of 202,599 files takes 100 MB. What takes time is decoding.
        zipped, lock = zipfile.ZipFile(archive), threading.Lock()
    except Exception as error:  # whatever a damaged index makes the module raise
        raise UserError(f"{archive} cannot be read ({error}): fetch it anew.") from error

    def read(member: zipfile.ZipInfo) -> bytes:
        with lock, zipped.open(member) as file:
            return decoding.read_bytes(file)

    members = zipped.infolist()
    paths = (pathlib.PurePosixPath(m.filename.replace("\\", "/")) for m in members)  # as Windows writes them
    return [_Member(path, m, (m.CRC, m.file_size)) for path, m in zip(paths, members, strict=True)], read


def _meant(file: str, found: Sequence[_Member], place: pathlib.Path) -> _Member:
    """Of the pictures that a name may mean: one of that format, in the folder of the photographs, in the fewest others.

    Raises:
      UserError: if two are equally near and not the same.
    """

    def rank(one: _Member) -> tuple[bool, bool, int]:
        path = one.path
        return path.suffix != pathlib.PurePosixPath(file).suffix, path.parent.name not in _IMAGES, len(path.parts)

    best, *others = sorted(found, key=rank)
    twin = next((one for one in others if rank(one) == rank(best) and one.content != best.content), None)
    if twin is not None:
        raise UserError(f"{place} has {best.path} and {twin.path}, either of which may be {short(file)}: remove one.")
    return best


def read_prepared(root: pathlib.Path, wanted: Sequence[str]) -> tuple[Attributes, np.ndarray, Callable[[str], bytes]]:
    """Reads a `celeb_a` that TensorFlow Datasets has prepared.

    Its records have no file names. They are called by split and place, such as "train/000000", so that the manifest of
    a prepared copy is another one than that of the original files.

    Args:
      root: the folder of one version.
      wanted: names of attributes.

    Returns:
      The attributes, the official partition (N,), and a function from a name to the bytes of its JPEG, for use in many
      threads.

    Raises:
      UserError: if the folder is damaged or another data set's, or lacks an attribute.
    """
    with prepared.opened(root, "celeb_a", ", ".join(_SPLITS)) as builder:
        from tensorflow_datasets.core.decode import DeserializeMethod
        from tensorflow_datasets.proto import tf_example_pb2

        _require(wanted, list(builder.info.features["attributes"]), root)
        # Decoding all fields of a record takes twenty times as long as parsing it and looking at a few.
        records = builder.as_data_source(list(_SPLITS), deserialize_method=DeserializeMethod.RAW_BYTES)
        of_split = dict(zip(_SPLITS, records, strict=True))

        def fields(split: str, row: int) -> Any:
            return tf_example_pb2.Example.FromString(of_split[split][row]).features.feature

        places = [(split, row) for split in _SPLITS for row in range(len(of_split[split]))]
        table = np.zeros((len(places), len(wanted)), np.int8)
        for found, place in zip(table, console.progress(places, "reading attributes"), strict=True):
            record = fields(*place)
            found[:] = [record[f"attributes/{name}"].int64_list.value[0] for name in wanted]

    def read(name: str) -> bytes:
        split, row = name.split("/")
        return fields(split, int(row))["image"].bytes_list.value[0]

    files = tuple(f"{split}/{row:06d}" for split, row in places)
    partition = np.asarray([_SPLITS.index(split) for split, _ in places], np.int8)
    return Attributes(files, tuple(wanted), table, root / prepared.INFO), partition, read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which copy, and which benchmark of it.

    Attributes:
      root: the folder of your copy.
      stand_in: how many avatars take CelebA's place; 0 for none.
      attributes: whose combinations are the classes.
      sizes: of the benchmark.
      seed: of the order of files.
      size: pixels a side.
      manifest: a file that freezes the benchmark: read if it is there, else written.
      cache: the folder of the decoded photographs; empty for `celeba` in the user's cache folder.
    """

    root: str = ""
    stand_in: int = 0
    attributes: tuple[str, ...] = (
        "Black_Hair",
        "Blond_Hair",
        "Brown_Hair",
        "Gray_Hair",
        "Wavy_Hair",
        "No_Beard",
        "Smiling",
        "Big_Nose",
        "Big_Lips",
        "Oval_Face",
        "Male",
        "Sideburns",
        "Wearing_Necklace",
        "Bald",
    )
    sizes: manifest_lib.Sizes = dataclasses.field(default_factory=manifest_lib.Sizes)
    seed: int = 0
    size: int = 128
    manifest: str = ""
    cache: str = ""


def _root(config: Options) -> pathlib.Path:
    """The folder of the copy, or of the avatars that stand in for it."""
    if config.stand_in and config.root:
        raise UserError(
            "config.data.stand_in draws faces of its own and config.data.root names some: leave one of them out."
        )
    if config.stand_in:
        return stand_in.folder(config.stand_in, config.seed)
    if not config.root:
        raise UserError(f"config.data.root names no folder. {_HELP}")
    root = storage.user_path(config.root)
    if not root.exists():
        raise UserError(f"the folder config.data.root={config.root!r} was looked for and is not there. {_HELP}")
    return _copy_at(root)


def _copy_at(root: pathlib.Path) -> pathlib.Path:
    """The folder of the copy, for those who name its pictures, their zip, or the folder that it lies in."""
    around = [root, root / "celeba", *sorted(root.glob("[0-9]*")), *sorted(root.glob("celeb_a/[0-9]*"))]
    if root.name.removesuffix(".zip") in _IMAGES:
        around = list(root.parents[:2])
    known = (p for p in around if _find(p, "list_attr_celeba") or (p / prepared.INFO).is_file())
    return next(known, around[0])


def _benchmark(config: Options, known: Attributes, partition: np.ndarray) -> manifest_lib.Manifest:
    """The frozen manifest, or what the rule gives."""
    frozen = storage.user_path(config.manifest)
    if not config.manifest or not frozen.exists():
        return manifest_lib.choose(known.names, known.files, known.table, partition, config.sizes, config.seed)
    manifest = manifest_lib.read(frozen)
    if manifest.attributes != known.names:
        raise UserError(f"{frozen} is about {', '.join(manifest.attributes)}: set config.data.attributes to these.")
    return manifest


def load(config: Options) -> Dataset:
    """Builds the data set that a configuration describes; decodes its photographs the first time.

    Args:
      config: Which.

    Returns:
      The data set. Queries and references are photographs of held-out classes; the judge learns from the training
      photographs and from those outside of all classes, and is validated on the queries and the seen classes' rest.

    Raises:
      UserError: If the copy is missing or damaged, or the attributes, the sizes or the manifest cannot be used.
    """
    with about("config.data."):
        require_positive(size=config.size)
    root = _root(config)
    wanted = tuple(config.attributes)
    read_record: Callable[[str], bytes] | None = None
    if (root / prepared.INFO).is_file():
        known, partition, read_record = read_prepared(root, wanted)
    else:
        known = read_attributes(root, wanted)
        partition = read_partition(root, known.files)
    composition_of = dict(zip(known.files, map(tuple, known.table.tolist()), strict=True))
    manifest = _benchmark(config, known, partition)
    manifest_lib.check(manifest, composition_of)
    files = tuple(manifest.files())
    identity = {
        "manifest": manifest_lib.fingerprint(manifest),
        "attributes file": hashlib.sha256(known.path.read_bytes()).hexdigest(),
    }
    decoded_by = identity | decoding.VERSIONS
    kept = cache.folder(config.cache, "celeba") / storage.digest([decoded_by, config.size])[:16]
    written = storage.user_path(config.manifest) if config.manifest else kept / "manifest.json"
    if not written.exists():  # it may be read-only, and other processes may be reading it
        manifest_lib.write(written, manifest)

    def open_files() -> Callable[[str], bytes]:
        return read_record or open_images(root, files)

    images, row_of = decoding.decode_all(kept, decoded_by, config.size, files, open_files)

    def part(*parts: str) -> dict[compositions.Composition, np.ndarray]:
        named = {c.composition: c.files[p] for c in manifest.classes for p in parts if p in c.files}
        return {c: np.asarray([row_of[name] for name in names if name in row_of], int) for c, names in named.items()}

    train = part("train")
    judge = {composition: list(rows) for composition, rows in train.items()}
    for name in manifest.judge:
        if name in row_of:
            judge.setdefault(composition_of[name], []).append(row_of[name])
    split = compositions.CompositionSplit(
        factors=compositions.Factors(known.names, (("no", "yes"),) * len(known.names)),
        trained=tuple(c.composition for c in manifest.classes if c.seen),
        held_out=tuple(c.composition for c in manifest.classes if not c.seen),
    )
    return stored.dataset(
        "celeba",
        images,
        split,
        train=train,
        query=part("validation", "query"),
        reference=part("reference"),
        judge={composition: np.asarray(rows, int) for composition, rows in judge.items()},
        digest=storage.digest([identity, config.size]),
    )
