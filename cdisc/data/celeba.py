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
from typing import Any

import numpy as np

from cdisc import console, storage
from cdisc.data import Dataset, cache, compositions, decoding, prepared, stand_in, stored
from cdisc.data import manifest as manifest_lib
from cdisc.errors import UserError, about, nearest, require_positive

_IMAGES = "img_align_celeba"
_SPLITS = ("train", "validation", "test")

_HELP = (
    "CelebA is free for non-commercial research: take it from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (or as "
    f"jessicali9530/celeba-dataset from Kaggle) and set --config.data.root to the folder that has {_IMAGES}/ or "
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


def _columns(path: pathlib.Path) -> tuple[list[str], list[list[str]]]:
    """The names of the columns after the file name's, and all columns, of a .txt or a .csv of the same content.

    The authors' attribute file begins with the count, which some copies lack, and the names, their partition file with
    neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it anew.") from error
    lines = [line for line in lines if line.strip()]
    count, names = None, []
    if lines and lines[0].strip().isdecimal():
        count = int(lines.pop(0))
    if lines and path.suffix == ".csv":
        names = [name.strip() for name in lines.pop(0).split(",")][1:]
        lines = [line.replace(",", " ") for line in lines]
    elif lines and not lines[0].split()[-1].lstrip("-").isdecimal():
        names = lines.pop(0).split()
    rows = [line.split() for line in lines]
    width = 1 + len(names) if names else 2
    wrong = next((row for row in rows if len(row) != width), None)
    if wrong is not None:
        raise UserError(f"{path} has {len(wrong)} columns at {wrong[0]} where {width} are expected: fetch it anew.")
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
    values = {value for column in chosen for value in set(column)}
    if not values <= {"1", "-1"}:
        raise UserError(f"{path} has the value {min(values - {'1', '-1'})!r}: attributes are 1 or -1; fetch it anew.")
    if len(set(files)) < len(files):
        raise UserError(f"{path} names a file twice: fetch it anew.")
    table = np.stack([np.asarray(column) == "1" for column in chosen], axis=1).astype(np.int8)
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
    _, columns = _columns(path)
    known = dict(zip(*columns, strict=True))
    missing = next((name for name in files if known.get(name) not in ("0", "1", "2")), None)
    if missing is not None:
        raise UserError(f"{path} gives no partition 0, 1 or 2 for {missing}: fetch it anew, or take it away.")
    return np.asarray([int(known[name]) for name in files], np.int8)


def open_images(root: pathlib.Path, files: Sequence[str]) -> Callable[[str], bytes]:
    """A function from a file's name to its bytes, for use in many threads.

    Args:
      root: has the folder `img_align_celeba` (Kaggle has it twice) or `img_align_celeba.zip`.
      files: what will be read.

    Raises:
      UserError: if there is neither, or one of the files is not in it.
    """
    archive = next((p for p in (root / f"{_IMAGES}.zip", root / "Img" / f"{_IMAGES}.zip") if p.is_file()), None)
    folders = (root / _IMAGES / _IMAGES, root / _IMAGES, root / "Img" / _IMAGES)
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None and archive is None:
        raise UserError(f"{root} has neither the folder {_IMAGES} nor {_IMAGES}.zip. {_HELP}")
    zipped, lock = None, threading.Lock()
    if folder is not None:
        where, inside = folder, {entry.name: entry.name for entry in os.scandir(folder)}
    else:
        assert archive is not None
        try:
            # One for all threads: its index of 202,599 files takes 100 MB. What takes time is decoding.
            zipped = zipfile.ZipFile(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{archive} cannot be read ({error}): fetch it anew.") from error
        where, inside = archive, {pathlib.PurePosixPath(name).name: name for name in zipped.namelist()}
    missing = [name for name in files if name not in inside]
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(files)} images of the benchmark, such as {missing[0]}: unpack "
            "or fetch it anew."
        )

    def read(name: str) -> bytes:
        if zipped is None:
            return (where / name).read_bytes()
        with lock:
            return zipped.read(inside[name])

    return read


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
    root = pathlib.Path(config.root).expanduser()
    if not root.exists():
        raise UserError(f"the folder config.data.root={config.root!r} was looked for and is not there. {_HELP}")
    return _copy_at(root)


def _copy_at(root: pathlib.Path) -> pathlib.Path:
    """The folder of the copy, for those who name its pictures, their zip, or the folder that it lies in."""
    around = [root, root / "celeba", *sorted(root.glob("[0-9]*")), *sorted(root.glob("celeb_a/[0-9]*"))]
    if root.name in (_IMAGES, f"{_IMAGES}.zip"):
        around = list(root.parents[:2])
    known = (p for p in around if _find(p, "list_attr_celeba") or (p / prepared.INFO).is_file())
    return next(known, around[0])


def _benchmark(config: Options, known: Attributes, partition: np.ndarray) -> manifest_lib.Manifest:
    """The frozen manifest, or what the rule gives."""
    frozen = pathlib.Path(config.manifest).expanduser()
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
    written = pathlib.Path(config.manifest).expanduser() if config.manifest else kept / "manifest.json"
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
