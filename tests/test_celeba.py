import functools
import json
import math
import pathlib
import shutil
import signal
import sys
import tracemalloc
import zipfile

import jax
import numpy as np
import published
import pytest
from commands import config_of

from cdisc import signals, storage
from cdisc.data import celeba, decoding, stand_in
from cdisc.data import manifest as manifest_lib
from cdisc.errors import UserError
from cdisc.networks import denoiser
from cdisc.networks.unet import UNetConfig

WANTED = ("Black_Hair", "No_Beard", "Smiling", "Male")
COUNT = 160


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Plain pictures in CelebA's layout, whose grey tells the file's number; drawn faces would take longer."""
    root = tmp_path_factory.mktemp("celeba")
    draw = stand_in.draw_face
    numbers = iter(range(1, COUNT + 1))
    stand_in.draw_face = lambda attributes, rng: np.full((218, 178, 3), next(numbers), np.uint8)
    try:
        stand_in.write(root, COUNT, seed=0)
    finally:
        stand_in.draw_face = draw
    return root


@pytest.fixture
def own(copy, tmp_path):
    """A copy of one's own to damage."""
    return shutil.copytree(copy, tmp_path / "copy")


@pytest.fixture
def config(copy, tmp_path):
    c = config_of("celeba.py", "avatars").data
    c.update(stand_in=0, root=str(copy), cache=str(tmp_path / "cache"), size=16)
    c.sizes.update(seen=5, held_out=3, train=6, validation=2, query=2, judge=20)
    return c


def numbers_of(images):
    return np.rint((np.asarray(images)[:, 8, 8, 0] + 1.0) * 127.5).astype(int)


def number(file):
    return int(pathlib.Path(file).stem)


def test_attributes_of_the_text_and_of_kaggles_csv(copy, tmp_path):
    found = stand_in.draw_attributes(COUNT, 0)
    lines = (copy / "list_attr_celeba.txt").read_text().splitlines()
    table = [",".join(["image_id", *lines[1].split()]), *(",".join(line.split()) for line in lines[2:])]
    (tmp_path / "list_attr_celeba.csv").write_text("\n".join(table))
    uncounted = tmp_path / "uncounted"
    uncounted.mkdir()
    (uncounted / "list_attr_celeba.txt").write_text("\n".join(lines[1:]))
    for root in (copy, tmp_path, uncounted):
        read = celeba.read_attributes(root, ("Smiling", "Bald", "Male"))
        assert read.names == ("Smiling", "Bald", "Male") and read.files[:2] == ("000001.jpg", "000002.jpg")
        np.testing.assert_array_equal(read.table, np.stack([found[n] for n in read.names], axis=1))


SMALL = {"000001.jpg": (-1, 1, 1), "000002.jpg": (-1, -1, 1), "000003.jpg": (1, 1, -1)}
"""Files and whether they are Bald, Male and Smiling."""


def written(root, text, name="list_attr_celeba.csv"):
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def table(sep=",", cell=str, row=None, names="image_id Bald Male Smiling", quote=""):
    """The small table as text; `row` numbers the lines from there on, and `cell` writes a value."""
    before = [""] if row is not None and names.startswith("image_id") else []
    lines = [[*before, *(f"{quote}{name}{quote}" for name in names.split())]]
    for i, (file, values) in enumerate(SMALL.items()):
        number = [] if row is None else [f"{quote}{row + i}{quote}"]
        lines.append([*number, f"{quote}{file}{quote}", *map(cell, values)])
    return "\n".join(sep.join(line) for line in lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + table().encode(),
        b"\xef\xbb\xbf3\r\n" + table(" ", names="Bald Male Smiling").replace("\n", " \r\n").encode(),
        table().encode("utf-16"),
        table(";"),
        table("\t"),
        table(quote='"'),
        table(row=0),
        table(row=1, quote='"'),
        "Bald Male Smiling\n" + table("\t ", names="Bald").split("\n", 1)[1],
        table(" ", row=1, quote='"', names="image_id Bald Male Smiling").replace(" ", "", 1),
        "sep=;\n" + table(";", row=0),
        table(row=0, names="index image_id Bald Male Smiling"),
        table(cell=lambda value: f"{value}.0"),
        table(cell=lambda value: f"{value:+d}"),
        table(cell=lambda value: str(max(value, 0))),
        table(cell=lambda value: str(value > 0)),
        table(cell=lambda value: f" {value}  "),
    ],
)
def test_attribute_files_as_people_have_them(tmp_path, text):
    # Catches: a mark in the first name, quotes in names, row numbers taken for files, one way to write a value.
    read = celeba.read_attributes(written(tmp_path, text), ("Smiling", "Bald"))
    assert read.files == tuple(SMALL)
    np.testing.assert_array_equal(read.table, [[1, 0], [1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table(cell=lambda value: str(min(value, 0))), "has the value '0': attributes are 1 or -1"),
        (table(cell=lambda value: "yes" if value > 0 else "no"), r"expected: fetch it anew|has the value"),
        (table(cell=lambda value: "nan"), "has the value 'nan'"),
        (table().replace("000002.jpg", "img/000001.png"), "names a file twice"),
        (table().replace("Male", "Bald"), "has the column Bald twice"),
        ("x" * 200_000, "cannot be read"),
        (b"\x80\x02}q", r"cannot be read .*: it must be a table as text"),
    ],
)
def test_attribute_files_that_would_be_misread(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        celeba.read_attributes(written(tmp_path, text), ("Smiling", "Bald"))


def test_the_partition_of_another_program_or_format(tmp_path):
    # Catches: a partition for JPEGs that does not count for the PNG copies of them.
    for i, text in enumerate(
        (
            "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n",
            "image_id,partition\n000001.png,0\n000002.png,1.0\n000003.png,2\n",
            ",image_id,partition\n5,000001.jpg,0\n6,000002.jpg,1\n9,000003.jpg,2\n",
            "\ufeff000001.jpg;0\r\n000002.jpg;1\r\n000003.jpg;2\r\n",
        )
    ):
        root = written(tmp_path / str(i), text, "list_eval_partition.csv")
        assert celeba.read_partition(root, tuple(SMALL)).tolist() == [0, 1, 2]


def test_a_partition_that_says_two_things_of_a_file(tmp_path):
    # Catches: the last of them taken without a word.
    root = written(tmp_path, "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000001.png 2\n", "list_eval_partition.txt")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt names a file twice"):
        celeba.read_partition(root, tuple(SMALL))


def archive_of(root, members, method=zipfile.ZIP_STORED):
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return root


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_several_pictures_of_one_name_the_meant_one_is_read_or_none(tmp_path):
    # Catches: a thumbnail, a note or the last member of an archive in a photograph's place.
    name, folder = "000001.jpg", "img_align_celeba"
    full = (f"{folder}/{name}", b"full")
    for i, others in enumerate(
        (
            [(f"{folder}/thumbs/{name}", b"no")],
            [(f"thumbs/{name}", b"no")],
            [(name, b"no")],
            [(f"__MACOSX/{folder}/._{name}", b"no")],
            [(f"{folder}_png/000001.png", b"no")],
            [(f"{folder}/000001.txt", b"no"), (f"{folder}/000001.png", b"no")],
            [full],
        )
    ):
        for j, members in enumerate(([full, *others], [*others, full])):
            root = archive_of(tmp_path / f"{i}{j}", members)
            assert celeba.open_images(root, (name,))(name) == b"full"
    for i, members in enumerate(([full, (full[0], b"no")], [("a/" + name, b"one"), ("b/" + name, b"two")])):
        with pytest.raises(UserError, match=r"either of which may be 000001\.jpg: remove one"):
            celeba.open_images(archive_of(tmp_path / str(i), members), (name,))


def test_png_copies_and_folders_beside(tmp_path):
    # Catches: a picture that is "missing" for its ending, and thumbnails or leftovers that stand for it.
    for i, (name, found) in enumerate(
        (("img_align_celeba", "a.png"), ("img_align_celeba_png", "a.png"), ("img_align_celeba_png", "a.PNG"))
    ):
        root = tmp_path / str(i)
        (root / name / "thumbs").mkdir(parents=True)
        for path, content in ((found, b"full"), ("thumbs/a.jpg", b"no"), ("a.json", b"no"), ("Thumbs.db", b"no")):
            (root / name / path).write_bytes(content)
        assert celeba.open_images(root, ("a.jpg",))("a.jpg") == b"full"
    (tmp_path / "0/img_align_celeba/a.jpg").write_bytes(b"exact")
    assert celeba.open_images(tmp_path / "0", ("a.jpg",))("a.jpg") == b"exact"
    # A folder that lacks some gives way to an archive that has all.
    archive_of(tmp_path / "0", [("img_align_celeba/a.jpg", b"1"), ("img_align_celeba/b.jpg", b"2")])
    assert celeba.open_images(tmp_path / "0", ("a.jpg", "b.jpg"))("a.jpg") == b"1"


def test_a_member_that_unpacks_to_more_than_a_picture(tmp_path, monkeypatch):
    # Catches: memory filled by a small archive.
    monkeypatch.setattr(decoding, "MAX_BYTES", 2**20)
    root = archive_of(tmp_path / "copy", [("img_align_celeba/a.jpg", bytes(2**26))], zipfile.ZIP_DEFLATED)
    assert (root / "img_align_celeba.zip").stat().st_size < 2**17
    read = celeba.open_images(root, ("a.jpg",))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read("a.jpg")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**23


def edited(path, edit):
    path.write_text(edit(path.read_text()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace(f"{COUNT}\n", f"{COUNT + 1}\n", 1), "has 160 lines of files and says 161"),
        (lambda text: text.replace(" Young", "", 1), "has 41 columns at 000001.jpg where 40 are expected"),
        (lambda text: text.replace("000002.jpg -1", "000002.jpg", 1), "has 40 columns at 000002.jpg where 41"),
        (lambda text: text.replace("000002.jpg", "000001.jpg", 1), "names a file twice"),
        (lambda text: text.replace(" 1", " 0"), "has the value '0': attributes are 1 or -1"),
        (lambda text: text.split("Young", 1)[1], "has 41 columns at 000001.jpg where 2 are expected"),
        (lambda text: "", "has 0 lines"),
    ],
)
def test_attribute_files_that_are_damaged(own, edit, message):
    edited(own / "list_attr_celeba.txt", edit)
    with pytest.raises(UserError, match=message):
        celeba.read_attributes(own, WANTED)


def test_an_attribute_that_does_not_exist(copy):
    with pytest.raises(UserError, match=r"data\.attributes has 'Smilling', .*; did you mean 'Smiling'\?"):
        celeba.read_attributes(copy, ("Smilling",))
    for wanted in ((), ("Smiling", "Smiling")):
        with pytest.raises(UserError, match=r"data\.attributes is .*: name at least one, and each once"):
            celeba.read_attributes(copy, wanted)


def test_the_official_partition(own, capsys):
    files = celeba.read_attributes(own, WANTED).files
    parts = celeba.read_partition(own, files)
    assert np.bincount(parts).tolist() == [128, 16, 16] and parts[0] == 0 and parts[-1] == 2
    edited(own / "list_eval_partition.txt", lambda text: text.replace("000003.jpg 0", "000003.jpg 7"))
    with pytest.raises(UserError, match=r"gives no partition 0, 1 or 2 for 000003\.jpg"):
        celeba.read_partition(own, files)
    (own / "list_eval_partition.txt").unlink()
    assert not celeba.read_partition(own, files).any()
    assert "has no list_eval_partition.txt or .csv: the benchmark" in capsys.readouterr().err


def test_images_of_a_folder_a_folder_in_a_folder_and_a_zip(copy, tmp_path):
    files = ("000001.jpg", "000160.jpg")
    expected = [(copy / "img_align_celeba" / name).read_bytes() for name in files]
    nested, zipped = tmp_path / "nested", tmp_path / "zipped"
    shutil.copytree(copy / "img_align_celeba", nested / "img_align_celeba" / "img_align_celeba")
    zipped.mkdir()
    with zipfile.ZipFile(zipped / "img_align_celeba.zip", "w") as archive:
        for path in (copy / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    for root in (copy, nested, zipped):
        read = celeba.open_images(root, files)
        assert [read(name) for name in files] == expected
        with pytest.raises(UserError, match=r"lacks 2 of the 3 images of the benchmark, such as 000161\.jpg"):
            celeba.open_images(root, ("000001.jpg", "000161.jpg", "000162.jpg"))
    (zipped / "img_align_celeba.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"img_align_celeba\.zip cannot be read"):
        celeba.open_images(zipped, files)


def test_a_copy_is_found_by_its_pictures_its_zip_or_the_folder_around_it(config, copy, tmp_path, monkeypatch):
    # Catches: a copy that is "not there" for those who name another of its folders, as torchvision's layout has them.
    home = tmp_path / "home"
    shutil.copytree(copy, home / "celeba")
    nested = tmp_path / "kaggle"
    shutil.copytree(copy / "img_align_celeba", nested / "img_align_celeba" / "img_align_celeba")
    zipped = tmp_path / "Img" / "img_align_celeba.zip"
    zipped.parent.mkdir()
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in (copy / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    for root in (nested, tmp_path):
        shutil.copy(copy / "list_attr_celeba.txt", root)
        shutil.copy(copy / "list_eval_partition.txt", root)
    monkeypatch.setenv("HOME", str(home))
    prints = set()
    for root in (copy, copy / "img_align_celeba", home, "~/celeba", nested / "img_align_celeba", zipped):
        config.update(root=str(root), cache="~/decoded")
        prints.add(celeba.load(config).fingerprint)
    assert len(prints) == 1
    assert len(list((home / "decoded").iterdir())) == 1


def test_a_finished_cache_does_without_the_photographs(config, own, monkeypatch):
    config.root = str(own)
    first = celeba.load(config)
    shutil.rmtree(own / "img_align_celeba")
    np.testing.assert_array_equal(celeba.load(config).train.images, first.train.images)
    # Another version of what decodes has another cache, of the same data.
    monkeypatch.setitem(decoding.VERSIONS, "pillow", "another")
    with pytest.raises(UserError, match="has neither the folder img_align_celeba nor"):
        celeba.load(config)


def write_prepared(root, copy):
    """The copy as TensorFlow Datasets prepares it; the records of a split are in another order than its files."""
    tfds = pytest.importorskip("tensorflow_datasets")
    serializer = pytest.importorskip("tensorflow_datasets.core.example_serializer")
    array_record = pytest.importorskip("array_record.python.array_record_module")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(218, 178, 3), encoding_format="jpeg"),
            "attributes": {name: np.bool_ for name in stand_in.NAMES},
            "identity": {"Identity_No": np.int64},
        }
    )
    root.mkdir(parents=True)
    features.save_config(str(root))
    serialize = serializer.ExampleSerializer(features.get_serialized_info()).serialize_example
    known = celeba.read_attributes(copy, stand_in.NAMES)
    partition, splits = celeba.read_partition(copy, known.files), []
    for part, split in enumerate(("train", "validation", "test")):
        rows = np.random.default_rng(part).permutation(np.flatnonzero(partition == part))
        writer = array_record.ArrayRecordWriter(
            str(root / f"celeb_a-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for row in rows:
            image = (copy / "img_align_celeba" / known.files[row]).read_bytes()
            values = dict(zip(stand_in.NAMES, known.table[row].astype(bool), strict=True))
            example = {"image": image, "attributes": values, "identity": {"Identity_No": 1}}
            writer.write(serialize(features.encode_example(example)))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "filepathTemplate": template, "shardLengths": [str(len(rows))]})
    info = {"name": "celeb_a", "version": "2.1.0", "fileFormat": "array_record", "splits": splits}
    (root / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "celeb_a"}))
    return root


def test_a_prepared_celeb_a_is_the_same_data(config, copy, tmp_path, monkeypatch):
    # Catches: attributes or partitions of another record, pictures out of step with them, TensorFlow, a signal that
    # waits for all records.
    root = write_prepared(tmp_path / "celeb_a" / "2.1.0", copy)
    known, partition, read = celeba.read_prepared(root, WANTED)
    files = celeba.read_attributes(copy, WANTED)
    assert known.files[0] == "train/000000" and known.files[-1] == "test/000015"
    assert np.bincount(partition).tolist() == [128, 16, 16]
    # A picture's grey is its number.
    numbers = [int(decoding.decode(read(name), 16)[8, 8, 0]) for name in known.files]
    assert sorted(numbers) == list(range(1, COUNT + 1)) != numbers
    np.testing.assert_array_equal(known.table, files.table[np.asarray(numbers) - 1])
    np.testing.assert_array_equal(partition, celeba.read_partition(copy, files.files)[np.asarray(numbers) - 1])
    loaded = []
    for place in (root, tmp_path / "celeb_a", tmp_path):  # those around it find it
        config.root = str(place)
        loaded.append(celeba.load(config))
    data = loaded[0]
    assert {one.fingerprint for one in loaded} == {data.fingerprint}
    images, attributes = data.labelled("train", 300, 0)
    np.testing.assert_array_equal(attributes, files.table[numbers_of(images) - 1])
    assert "tensorflow" not in sys.modules
    with pytest.raises(UserError, match=r"data\.attributes has 'Smilling', .*; did you mean 'Smiling'\?"):
        celeba.read_prepared(root, ("Smilling",))
    with monkeypatch.context() as asked, pytest.raises(signals.Stopped):
        asked.setattr(signals, "_asked", signal.SIGTERM)
        celeba.read_prepared(root, WANTED)
    (root / "celeb_a-test.array_record-00000-of-00001").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"2\.1\.0 cannot be read as celeb_a \(.*splits train, validation, test"):
        celeba.load(config)


def test_every_picture_is_where_the_manifest_says(config):
    # Catches: rows and files out of step, parts confused, held-out files in training, a judge that sees queries.
    config.manifest = str(pathlib.Path(config.cache) / "frozen.json")
    data = celeba.load(config)
    manifest = manifest_lib.read(pathlib.Path(config.manifest))
    classes = {one.composition: one for one in manifest.classes}
    assert data.split.trained == tuple(c for c, one in classes.items() if one.seen) and len(data.split.trained) == 5
    assert data.split.held_out == tuple(c for c, one in classes.items() if not one.seen)
    assert data.split.factors.names == WANTED
    images, labels = data.train_batch(data.train, jax.random.key(0), 300, np.arange(300))
    for label, composition in enumerate(data.split.trained):
        files = classes[composition].files["train"]
        assert set(numbers_of(images)[np.asarray(labels) == label]) == set(map(number, files))
    for composition in data.split.held_out:
        files = classes[composition].files
        assert numbers_of(data.queries(composition, 2)).tolist() == list(map(number, files["query"]))
        count = len(files["reference"])
        assert numbers_of(data.references(composition, count)).tolist() == list(map(number, files["reference"]))
    drawn = stand_in.draw_attributes(COUNT, 0)
    truth = np.stack([drawn[name] for name in WANTED], axis=1)
    for part, parts in (("train", ("train",)), ("query", ("validation", "query"))):
        seen, attributes = data.labelled(part, 600, 0)
        np.testing.assert_array_equal(attributes, truth[numbers_of(seen) - 1])
        files = [name for one in manifest.classes for p in parts for name in one.files.get(p, ())]
        files += manifest.judge if part == "train" else ()
        assert set(numbers_of(seen)) == set(map(number, files))


def test_a_frozen_manifest_decides(config):
    config.manifest = str(pathlib.Path(config.cache) / "frozen.json")
    data = celeba.load(config)
    config.seed = 1  # would order the files otherwise
    np.testing.assert_array_equal(celeba.load(config).train.images, data.train.images)
    config.manifest = ""
    assert not np.array_equal(celeba.load(config).train.images, data.train.images)
    config.manifest, config.attributes = str(pathlib.Path(config.cache) / "frozen.json"), ("Smiling", "Male")
    with pytest.raises(UserError, match="is about Black_Hair, No_Beard, Smiling, Male: set"):
        celeba.load(config)


@pytest.mark.parametrize("name", ["", "frozen.json"])
def test_a_second_load_writes_nothing(config, monkeypatch, name):
    # What is kept may be read-only. Catches: writing a manifest, or a list of files, that is there.
    config.manifest = str(pathlib.Path(config.cache) / name) if name else ""
    first = celeba.load(config)

    def refuse(path, content):
        raise AssertionError(path)

    monkeypatch.setattr(storage, "write_bytes", refuse)
    monkeypatch.setattr(storage, "writable", refuse)
    assert celeba.load(config).fingerprint == first.fingerprint


def damage(root, files):
    for name in files:
        (root / "img_align_celeba" / name).write_bytes(b"\xff\xd8\xff\xe0 cut short")


def test_corrupt_images_are_named_and_left_out_or_too_many(config, own, capsys, monkeypatch):
    config.root = str(own)
    known = celeba.read_attributes(own, WANTED)
    sizes = manifest_lib.Sizes(**config.sizes.to_dict())
    partition = celeba.read_partition(own, known.files)
    manifest = manifest_lib.choose(WANTED, known.files, known.table, partition, sizes, 0)
    bad = manifest.classes[0].files["train"][:2]
    damage(own, bad[:1])
    monkeypatch.setattr(decoding, "_MAX_UNREADABLE", 0.02)
    data = celeba.load(config)
    assert f"1 of 84 images cannot be read and are left out: {bad[0]}." in capsys.readouterr().err.replace("\n", " ")
    assert len(data.train.rows) == 29
    # The next time it is known.
    assert len(celeba.load(config).train.rows) == 29
    assert f"left out: {bad[0]}." in capsys.readouterr().err.replace("\n", " ")
    damage(own, bad)
    config.cache += "_2"
    with pytest.raises(UserError, match=rf"2 of 84 images cannot be read \({bad[0]}, {bad[1]}\)"):
        celeba.load(config)


def test_nothing_there_is_said_at_once(config, tmp_path, copy):
    # Catches: a message without the place, the licence, or a command that works now.
    cases = (
        ({"root": ""}, "data.root names no folder"),
        ({"root": str(tmp_path / "none")}, "was looked for and is not there"),
        ({"root": str(tmp_path)}, r"has no list_attr_celeba\.txt or \.csv"),
        ({"root": str(copy), "stand_in": 3}, "leave one of them out"),
    )
    for change, message in cases:
        config.update(change)
        with pytest.raises(UserError, match=message) as raised:
            celeba.load(config)
        if "stand_in" not in change:
            for part in ("non-commercial research", "mmlab.ie.cuhk.edu.hk", "configs/avatars.py:small"):
                assert part in str(raised.value)
    shutil.copy(copy / "list_attr_celeba.txt", tmp_path)
    config.update(root=str(tmp_path), stand_in=0)
    with pytest.raises(UserError, match=r"has neither the folder img_align_celeba nor img_align_celeba\.zip"):
        celeba.load(config)


def test_the_configuration_has_the_published_network_and_the_papers_classes():
    config = config_of("celeba.py")
    network = UNetConfig(**{name: value for name, value in config.network.items() if name != "kind"})
    options = published.NETWORKS["google/ddpm-celebahq-256"] | {"sample_size": 128, "num_class_embeds": 52}
    for name, value in options.items():
        if hasattr(network, name):
            assert getattr(network, name) == (tuple(value) if isinstance(value, list) else value), name
    shapes = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count == published.PARAMETERS["google/ddpm-celebahq-256"] + 52 * 512
    assert manifest_lib.Sizes(**config.data.sizes.to_dict()) == manifest_lib.Sizes()
    assert (len(config.data.attributes), config.data.sizes.seen) == (14, 51)
    assert set(config.data.attributes) <= set(stand_in.NAMES)


@pytest.mark.parametrize(("file", "variant"), [("celeba.py", "small"), ("avatars.py", "study")])
def test_a_variant_that_does_not_exist(file, variant):
    with pytest.raises(ValueError, match=f"has no variant '{variant}': use one of"):
        config_of(file, variant)
