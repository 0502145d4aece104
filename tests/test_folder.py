import itertools
import shlex
import shutil

import jax
import numpy as np
import pytest
from commands import ONE_BLOCK, config_of, marked, run_here
from PIL import Image

from cdisc.app import run
from cdisc.app.config import read
from cdisc.data import folder
from cdisc.errors import UserError

LOOKS = [
    *itertools.product(("disc", "square"), ("dark red", "green", "blue")),
    ("star", "green"),
    ("star", "blue"),
]
"""What there is; no star is dark red."""

EACH = 16
HELD_OUT = "shape=disc 'colour=dark red'"


def write(root, each=EACH):
    """Pictures whose grey is their number, in folders, and a table that takes them in another order."""
    looks = dict(enumerate(look for look in LOOKS for _ in range(each)))
    names = {i: f"{'ab'[i % 2]}/{i}.{'png' if i % 3 else 'bmp'}" for i in looks}
    for i, name in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10), i, np.uint8)).save(root / name)
    order = np.random.default_rng(0).permutation(len(looks))
    lines = [
        f'{names[i]},{looks[i][0]},"{looks[i][1]}"' if i % 5 else f"./{names[i]} , {looks[i][0]},{looks[i][1]}"
        for i in order
    ]
    (root / "labels.csv").write_text("\ufefffile,shape,colour\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write(tmp_path_factory.mktemp("folder") / "toys")


@pytest.fixture
def own(pictures, tmp_path):
    """A copy of one's own to change."""
    return shutil.copytree(pictures, tmp_path / "toys")


@pytest.fixture
def config(pictures, tmp_path):
    c = config_of("folder.py", "tiny").data
    c.update(root=str(pictures), cache=str(tmp_path / "cache"), size=8, held_out=(HELD_OUT,), query=3, reference=5)
    return c


def numbers_of(images):
    return np.rint((np.asarray(images)[:, 4, 4, 0] + 1.0) * 127.5).astype(int)


def looks_of(numbers):
    return {LOOKS[number // EACH] for number in numbers}


def test_every_picture_has_its_label_and_one_part(config):
    # Catches: labels of other pictures, combinations that are not there as classes, a held-out picture in training,
    # queries among the trained or the references, a judge that has seen one of them, pictures that nobody uses.
    data = folder.load(config)
    assert (data.name, data.shape) == ("toys", (8, 8, 3))
    assert data.split.factors.names == ("shape", "colour")
    values = data.split.factors.values
    assert values == (("disc", "square", "star"), ("blue", "dark red", "green"))

    def words(composition):
        return tuple(of[index] for of, index in zip(values, composition, strict=True))

    assert set(map(words, data.split.trained)) == set(LOOKS) - {("disc", "dark red")}
    assert list(map(words, data.split.held_out)) == [("disc", "dark red")]
    images, labels = data.train_batch(data.train, jax.random.key(0), 1000, np.arange(1000))
    trained = {}
    for label, composition in enumerate(data.split.trained):
        trained[composition] = set(numbers_of(images)[np.asarray(labels) == label])
        assert looks_of(trained[composition]) == {words(composition)}
    (composition,) = data.split.held_out
    queries = numbers_of(data.queries(composition, 3)).tolist()
    references = numbers_of(data.references(composition, 5)).tolist()
    assert looks_of(queries + references) == {("disc", "dark red")}
    seen = {}
    for part in ("train", "query"):
        images, attributes = data.labelled(part, 3000, 0)
        seen[part] = set(numbers_of(images))
        for number, row in zip(numbers_of(images), attributes, strict=True):
            assert words(row) == LOOKS[number // EACH]
    # Of 16 pictures of a trained class an eighth validates; of 16 held-out ones the judge alone sees 8.
    assert {len(found) for found in trained.values()} == {14}
    assert len(seen["train"] - set().union(*trained.values())) == 8
    assert len(seen["query"]) == 3 + 2 * 7
    parts = [seen["train"], seen["query"], references]
    assert sorted(itertools.chain(*parts)) == list(range(EACH * len(LOOKS)))
    with pytest.raises(UserError, match=r"4 query pictures of shape=disc 'colour=dark red' are wanted and there are 3"):
        data.queries(composition, 4)


def test_the_split_follows_from_names_and_seed(config, own):
    # Catches: an order that a table, a clock or a run has.
    data = folder.load(config)
    (composition,) = data.split.held_out
    table = own / "labels.csv"
    first, *lines = table.read_text().split("\n")
    table.write_text("\n".join([first, *sorted(lines)]))
    config.update(root=str(own), cache=config.cache + "_2")
    again = folder.load(config)
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(again.queries(composition, 3), data.queries(composition, 3))
    config.seed = 1
    assert not np.array_equal(folder.load(config).queries(composition, 3), data.queries(composition, 3))


def test_the_fingerprint_sees_what_decides_the_pictures_and_no_picture_is_decoded_twice(config, own, monkeypatch):
    # Catches: a cache that is not made anew for a changed picture or is for a changed label.
    config.root = str(own)
    prints = {folder.load(config).fingerprint}
    with monkeypatch.context() as patch:
        patch.setattr(folder.decoding, "decode", None)
        assert folder.load(config).fingerprint in prints
        for change in ({"seed": 1}, {"query": 4}, {"reference": 6}, {"held_out": ("shape=star colour=green",)}):
            changed = config.copy_and_resolve_references()
            changed.update(change)
            prints.add(folder.load(changed).fingerprint)
        table = own / "labels.csv"
        text = table.read_text()
        assert "a/126.bmp,star," in text
        table.write_text(text.replace("a/126.bmp,star,", "a/126.bmp,disc,"))
        prints.add(folder.load(config).fingerprint)
    table.write_text(text)
    Image.fromarray(np.full((8, 10), 200, np.uint8)).save(own / "a/6.bmp")  # as many bytes as before
    prints.add(folder.load(config).fingerprint)
    config.size = 4
    prints.add(folder.load(config).fingerprint)
    assert len(prints) == 8


def edited(old, new):
    def edit(root):
        table = root / "labels.csv"
        text = table.read_text()
        assert old in text
        table.write_text(text.replace(old, new, 1))

    return edit


def unlinked(name):
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (shutil.rmtree, r"data\.root is '.*toys', which is no folder: set it to that of your pictures"),
        (unlinked("labels.csv"), r"labels\.csv is not there: .* first line such as file,shape,colour"),
        (lambda root: (root / "labels.csv").write_bytes(b"file,a\n\xff,b"), r"labels\.csv cannot be read \(.*UTF-8"),
        (lambda root: (root / "labels.csv").write_text('f,a\n"x,b'), r"labels\.csv cannot be read \(unexpected end"),
        (lambda root: (root / "labels.csv").write_text(""), r"has 0 pictures and the columns : name the file and"),
        (lambda root: (root / "labels.csv").write_text("f a\n"), r"has 0 pictures and the columns f, a: .*commas"),
        (edited("shape,colour", "shape,shape"), r"the columns file, shape, shape: .* each once"),
        (edited("shape,colour", "shape,"), r"the columns file, shape, : name the file"),
        (edited("a/52.png,square,", "a/52.png,"), r"labels\.csv, line \d+, has 2 columns and the first line 3"),
        (edited("a/52.png,square", "a/52.png,"), r"labels\.csv, line \d+, has nothing in the column shape: fill it"),
        (edited("a/52.png,", ","), r"labels\.csv, line \d+, has nothing in the column file"),
        (edited("a/56.png,", "./a/52.png,"), r"labels\.csv, line \d+, names a/52\.png for the second time"),
        (unlinked("a/50.png"), r"labels\.csv, line \d+, names a/50\.png, which is not in .*toys: mend the name"),
        (edited("a/126.bmp,star", "a/126.bmp,moon"), r"has 1 pictures of shape=moon colour=\w+, and a class needs 2"),
        (edited("shape,colour\n", "n\n"), r"line \d+, has 3 columns and the first line 2"),
    ],
)
def test_a_folder_or_table_that_is_wrong(config, own, edit, message):
    edit(own)
    config.root = str(own)
    with pytest.raises(UserError, match=message):
        folder.load(config)


def table_of(root, text, **options):
    (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder.read_table(root / "labels.csv", root, **options)


@pytest.mark.parametrize(
    "text",
    [
        "file;shape;colour\r\nb/1.png;disc;dark red\r\n",
        "sep=;\r\nfile;shape;colour\r\nb/1.png;disc;dark red\r\n",
        "file\tshape\tcolour\nb/1.png\tdisc\tdark red\n".encode("utf-16"),
        "file|shape|colour\rb/1.png|disc|dark red",
        'file shape colour\nb/1.png   disc "dark red" \n',
        '"file";"shape";"colour"\n"b/1.png";"disc";"dark  red"\n\n',
        "file,shape,colour,,\nb\\1.png,disc,dark\u00a0red,,\n,,,,\n",
        ",file,shape,colour\n7,b/1.png,disc,dark red\n",
        'Unnamed: 0,"index",file,shape,colour\n0,12,b/1.png,disc,dark red\n',
        '"file" "shape" "colour"\n"1" "b/1.png" "disc" "dark red"\n',
    ],
)
def test_tables_as_programs_write_them(own, text):
    # Catches: a separator, a mark, quotes, row numbers, empty columns or blanks that become part of names or values.
    assert table_of(own, text) == (("shape", "colour"), {"b/1.png": ("disc", "dark red")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "b/1.png,disc\nb/3.png,star\n",
            r"labels\.csv begins with the picture b/1\.png: put a line before it that names",
        ),
        ("file,shape\nB/3.BMP,disc\n", r"names B/3\.BMP, which is not in .*: mend the name"),
        ("file,shape\nb/3.PNG,disc\n", r"names b/3\.PNG, which is not in .*: did you mean b/3\.bmp\?"),
        ("file,shape\nb/1,disc\n", r"did you mean b/1\.png\?"),
        (f"file,shape\n{'x' * 900}.png,disc\n", r"names x+\.\.\.x+\.png, which is not in"),
        (f"file,shape\n{'x' * 5000}.png,disc\n", r"cannot be read \(it has a cell of more than 1000 characters\)"),
        (f"file,shape\nb/1.png,{'x' * 200_000}\n", r"cannot be read \(field larger than"),
        ("file,shape\nb/1\0.png,disc\n", r"cannot be read \(it has zero bytes\)"),
        ("file,Größe\nb/1.png,groß\n".encode("cp1252"), r"cannot be read .*: it must be a table as text in UTF-8"),
        ("file,Colour,colour\nb/1.png,a,b\n", "has the column 'colour' and also 'Colour': write them alike"),
        ("file,colour\nb/1.png,Red\na/2.png,red\n", "in the column colour the value 'red' and also 'Red'"),
        # Catches: what nobody sees, or how a line is drawn, telling classes apart.
        (
            "file,colour\nb/1.png,red\na/2.png,r\u00aded\u200b\n",
            "in the column colour the value 'r.xaded.u200b' and also 'red'",
        ),
        ("file,colour\nb/1.png,dark-red\na/2.png,dark\u2013red\n", "in the column colour the value"),
        ("file,colour\nb/1.png,dark_red\na/2.png,dark red\n", "in the column colour the value"),
        # Catches: a column that a program has read as numbers in one part of the table alone.
        ("file,size\nb/1.png,1\na/2.png,1.0\n", r"in the column size the value '1\.0' and also '1': write them alike"),
        ("file,size\nb/1.png,-0\na/2.png,0e3\n", "in the column size the value '0e3' and also '-0'"),
        ("file,shape\nb,disc\n", r"names b, which is not in .*: mend the name"),
        ("file,size\nb/1.png,gro\u00df\na/2.png,GROSS\n", "in the column size the value"),
        ("file,cafe\nb/1.png,caf\u00e9\na/2.png,cafe\u0301\n", "in the column cafe the value"),
        ("file,shape\nb/1.png,disc\na/../b/1.png,disc\n", r"names a/\.\./b/1\.png for the second time"),
        ("file,shape\nb/1.png,disc\nb/same.png,disc\n", r"names b/same\.png for the second time"),
    ],
)
def test_tables_that_would_be_misread(own, text, message):
    # Catches: a first picture that becomes the names, twins that become two classes, a picture in two parts.
    (own / "b/same.png").symlink_to("1.png")
    with pytest.raises(UserError, match=message):
        table_of(own, text)


def test_a_table_does_not_leave_its_folder_unless_told_so(own, config):
    # Catches: any file of the machine read by a table from elsewhere.
    secret, table = own.parent / "secret.png", (own / "labels.csv").read_text()
    secret.write_bytes(b"")
    (own / "link.png").symlink_to(secret)
    (own / "up").symlink_to(own.parent)
    (own / "loop.png").symlink_to("loop.png")
    for name in ("../secret.png", str(secret), "link.png", "up/secret.png", "..\\secret.png", "a/../../secret.png"):
        with pytest.raises(
            UserError, match=r"lies outside of .*toys: move it there, or .*--config\.data\.outside=True"
        ):
            table_of(own, f"file,shape\n{name},disc\n")
        assert table_of(own, f"file,shape\n{name},disc\n", outside=True)[1]
    for name in ("loop.png", "a", "."):
        with pytest.raises(UserError, match="which is not in"):
            table_of(own, f"file,shape\n{name},disc\n")
    link = own.parent / "linked"
    link.symlink_to(own)  # the folder itself may be one
    (own / "labels.csv").write_text(table)
    config.root = str(link)
    assert len(folder.load(config).split.trained) == 7


def test_the_line_is_the_tables_own(config, own):
    # The third: the first names the columns and the second is empty.
    table = own / "labels.csv"
    lines = table.read_text().split("\n")
    lines[2] = lines[2].replace(",", ";")
    table.write_text("\n".join(lines))
    config.root = str(own)
    with pytest.raises(UserError, match=r"labels\.csv, line 3, has 1 columns"):
        folder.load(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": ""}, "data.root is '', which is no folder"),
        ({"table": "none.csv"}, r"none\.csv is not there"),
        (
            {"held_out": ()},
            r"set config\.data\.held_out to some, such as \('shape=star colour=green',\)",
        ),
        (
            {"held_out": (HELD_OUT, "shape=star 'colour=dark red'")},
            r"\"shape=star .*\" in config\.data\.held_out matches none",
        ),
        ({"held_out": ("shape=dsc",)}, 'did you mean "disc"'),
        ({"held_out": ("shape='disc",)}, "cannot be read as an assignment of attributes"),
        ({"held_out": ("shape=disc", "shape=square", "shape=star")}, "shape=disc, so it is never trained"),
        (
            {"reference": 14},
            r"has 16 pictures of shape=disc 'colour=dark red', and it is held out, where config\.data\.query=3 and "
            r"config\.data\.reference=14 are taken",
        ),
        ({"reference": 14, "held_out": (HELD_OUT, "shape=square colour=blue")}, r"\(and too few of 1 more\)"),
        ({"query": 0}, r"config\.data\.query is 0: use whole numbers from 1 on"),
    ],
)
def test_a_configuration_that_is_wrong(config, change, message):
    config.update(change)
    with pytest.raises(UserError, match=message):
        folder.load(config)


def test_damaged_pictures_are_left_out_or_too_many(config, own, capsys):
    # Catches: rows out of step behind a damaged picture, and the black one, number 0, among the damaged.
    config.root = str(own)
    (own / "a/52.png").write_bytes(b"damaged")
    data = folder.load(config)
    assert "1 of 128 images cannot be read and are left out: a/52.png." in capsys.readouterr().err.replace("\n", " ")
    seen = [*numbers_of(data.references(*data.split.held_out, 5))]
    for part in ("train", "query"):
        images, attributes = data.labelled(part, 3000, 0)
        shapes = [data.split.factors.values[0][row[0]] for row in attributes]
        assert shapes == [LOOKS[number // EACH][0] for number in numbers_of(images)]
        seen += set(numbers_of(images))
    assert sorted(seen) == [number for number in range(EACH * len(LOOKS)) if number != 52]
    (own / "a/56.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2 of 128 images cannot be read \(a/52\.png, a/56\.png\): replace them"):
        folder.load(config)


def whole_config(tmp_path):
    """A configuration, and as many pictures as it needs."""
    config = config_of("folder.py", "tiny")
    root = write(tmp_path / "toys", each=20)
    config.data.update(root=str(root), cache=str(tmp_path / "cache"), held_out=(HELD_OUT,))
    return config


def test_a_run_begins_with_the_data_and_a_network_that_follows_them(tmp_path):
    # Catches: a loader that the run does not know, a table or a side that the person would have to set too.
    config = whole_config(tmp_path)
    config.data.size = 64
    this = run.prepare(read(config), tmp_path / "run", [])
    assert this.dataset.shape == (64, 64, 3)
    assert (this.network.num_class_embeds, this.network.sample_size) == (len(LOOKS), 64)
    assert [query.name for query in this.queries] == ["disc dark red", "disc dark red (2)"]
    config.network.num_class_embeds = len(LOOKS)
    assert run.prepare(read(config), tmp_path / "run", []).network == this.network
    config.network.num_class_embeds = 9
    with pytest.raises(UserError, match=f"is 9, but the split trains {len(LOOKS) - 1}: set it to {len(LOOKS)}"):
        run.prepare(read(config), tmp_path / "run", [])
    config.data.size = 62
    with pytest.raises(UserError, match=r"^config\.network\.sample_size is 62: these levels and patches"):
        read(config)


def test_the_readme_s_command(tmp_path):
    # Catches: a stage that cannot work with the data, such as a validation without pictures of a trained class.
    config, workdir = whole_config(tmp_path).data, tmp_path / "run"
    script = marked("folder").replace("\\\n", "")
    given = {":small": ":tiny", "runs/own": str(workdir), "FOLDER": config.root, "colour=red": "colour=green"}
    for old, new in given.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    words = shlex.split(script)
    assert words[1:3] == ["-m", "cdisc.main"]
    fewer = (f"--config.pretrain.{name}" for name in ("steps=12", "warmup_steps=2", "decay_steps=2", "samples_every=0"))
    ended = run_here(*words[3:], f"--config.data.cache={config.cache}", *ONE_BLOCK, *fewer, "--stages=pretrain")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (workdir / "pretrain" / "params").exists()


@pytest.mark.parametrize("variant", ["large", "small", "tiny", "finetune"])
def test_there_are_pictures_for_what_a_variant_evaluates(variant):
    config = config_of("folder.py", variant)
    assert config.data.reference >= config.evaluate.references + config.evaluate.samples
    assert config.data.query >= config.evaluate.num_queries  # of one class, if no more are held out
    assert config.network.sample_size == config.data.size


def test_a_variant_that_does_not_exist():
    with pytest.raises(ValueError, match=r"configs/folder\.py has no variant 'study'"):
        config_of("folder.py", "study")
