import dataclasses
import hashlib
import json

import numpy as np
import pytest

from cdisc.data import manifest as manifest_lib
from cdisc.data import stand_in
from cdisc.errors import UserError

NAMES = ("a", "b", "c")
# (combination, how many files have it)
COUNTS = {(0, 0, 0): 9, (1, 0, 0): 8, (1, 1, 1): 6, (0, 1, 1): 5, (0, 1, 0): 5, (0, 0, 1): 2, (1, 0, 1): 1}
TABLE = np.repeat(np.asarray(list(COUNTS), np.int8), list(COUNTS.values()), axis=0)
FILES = tuple(f"{row:02d}.jpg" for row in range(len(TABLE)))
OF = dict(zip(FILES, map(tuple, TABLE.tolist()), strict=True))
SIZES = manifest_lib.Sizes(seen=2, held_out=2, train=3, validation=1, query=2, judge=4)
# The paper's attributes; Male and all others are drawn by `stand_in`.
PAPER = (
    *("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Wavy_Hair", "No_Beard", "Smiling"),
    *("Big_Nose", "Big_Lips", "Oval_Face", "Male", "Sideburns", "Wearing_Necklace", "Bald"),
)


def choose(sizes=SIZES, seed=0, partition=None, files=FILES, table=TABLE):
    partition = np.zeros(len(files), np.int8) if partition is None else partition
    return manifest_lib.choose(NAMES, files, table, partition, sizes, seed)


def by_hash(files, seed=0):
    return sorted(files, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def of(composition):
    return [name for name, found in OF.items() if found == composition]


def test_the_rule():
    # Catches: ranking by anything but frequency, held-out classes that are far from all seen ones, as (1, 1, 1) is, the
    # most frequent one left; parts cut elsewhere, files in the order of the table.
    found = choose()
    assert [(one.composition, one.seen) for one in found.classes] == [
        ((0, 0, 0), True),
        ((1, 0, 0), True),
        ((0, 0, 1), False),
        ((0, 1, 0), False),
    ]
    assert [{part: len(names) for part, names in one.files.items()} for one in found.classes] == [
        {"train": 3, "validation": 1},
        {"train": 3, "validation": 1},
        {"query": 1, "reference": 1},
        {"query": 2, "reference": 2},
    ]
    for one in found.classes:
        chosen = [name for names in one.files.values() for name in names]
        assert chosen == by_hash(of(one.composition))[: len(chosen)]
    taken = {name for one in found.classes for names in one.files.values() for name in names}
    assert list(found.judge) == by_hash(set(FILES) - taken)[:4]
    assert found.attributes == NAMES


def test_the_rule_is_blind_to_the_order_of_the_table_and_sees_the_seed():
    order = np.random.default_rng(0).permutation(len(FILES))
    shuffled = choose(files=tuple(FILES[i] for i in order), table=TABLE[order])
    assert shuffled == choose()
    assert choose(seed=1).classes[0].files != choose().classes[0].files


def test_of_equally_frequent_classes_the_first_comes_first():
    sizes = dataclasses.replace(SIZES, seen=4, held_out=1)
    assert [one.composition for one in choose(sizes).classes if one.seen][1:3] == [(0, 1, 0), (1, 0, 0)]


def test_the_official_partition_goes_before_the_hash():
    partition = np.zeros(len(FILES), np.int8)
    first = by_hash(of((0, 0, 0)))[0]
    partition[FILES.index(first)] = 2
    files = choose(partition=partition).classes[0].files
    assert first not in files["train"] + files["validation"]


def test_a_seen_class_of_few_files_keeps_the_ratio():
    sizes = dataclasses.replace(SIZES, train=30, validation=10)
    assert [len(names) for names in choose(sizes).classes[0].files.values()] == [7, 2]


def test_too_few_combinations():
    with pytest.raises(UserError, match="6 combinations of two files or more, which make 6 seen and 0 held-out"):
        choose(dataclasses.replace(SIZES, seen=8))


def test_a_seen_class_of_few_files_has_one_in_each_part():
    # Catches: a part left empty, or a class of one file, for both of which `check` would blame the manifest.
    sizes = dataclasses.replace(SIZES, seen=5, held_out=1, train=750, validation=75)
    manifest = choose(sizes)
    assert min(len(names) for one in manifest.classes for names in one.files.values()) == 1
    manifest_lib.check(manifest, dict(zip(FILES, map(tuple, TABLE.tolist()), strict=True)))


@pytest.mark.parametrize(
    ("together", "parts"), [(5, [(1, 1), (1, 2)]), (6, [(1, 1), (2, 2)]), (4, [(1, 1), (1, 1)]), (1, [(1, 1), (1, 1)])]
)
def test_held_out_classes_share_their_files(together, parts):
    # Catches: a limit for each class in place of one for all, one that is not reached or passed, classes of one file.
    found = choose(dataclasses.replace(SIZES, held_out_files=together)).classes[2:]
    assert [tuple(len(names) for names in one.files.values()) for one in found] == parts


@pytest.mark.parametrize("name", ["seen", "held_out", "train", "validation", "held_out_files", "query"])
def test_a_size_that_leaves_a_class_empty(name):
    with pytest.raises(ValueError, match=rf"^{name} is 0: that leaves a class empty"):
        manifest_lib.Sizes(**{name: 0})


def test_a_manifest_that_was_written_is_the_same_when_it_is_read(tmp_path):
    manifest_lib.write(tmp_path / "m.json", choose())
    assert manifest_lib.read(tmp_path / "m.json") == choose()
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["classes"][1]["attributes"] == ["a"]
    assert content["sha256"] == manifest_lib.fingerprint(choose()) != manifest_lib.fingerprint(choose(seed=1))


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "m.json"
    manifest_lib.write(path, choose())
    text = path.read_text()
    name = choose().judge[0]
    for changed, message in (
        (text.replace(name, "other.jpg"), "is not what was written"),
        (text.replace('"version": 1', '"version": 0'), "has version 0 where 1 is expected"),
        (text[:-20], "is no manifest"),
        ("[]", "is no manifest"),
        ("[" * 100_000, "is no manifest"),
    ):
        path.write_text(changed)
        with pytest.raises(UserError, match=message):
            manifest_lib.read(path)


def test_leaks_and_foreign_files_are_named():
    good = choose()
    manifest_lib.check(good, OF)

    def changed(index, **files):
        one = dataclasses.replace(good.classes[index], files=good.classes[index].files | files)
        return dataclasses.replace(good, classes=(*good.classes[:index], one, *good.classes[index + 1 :]))

    query = good.classes[3].files["query"]
    stray = dataclasses.replace(good.classes[3], composition=(1, 1, 1), files={"query": tuple(of((1, 1, 1))[:1])})
    cases = [
        (changed(0, train=(*good.classes[0].files["train"], query[0])), f"leaks: {query[0]} is in two"),
        (dataclasses.replace(good, judge=(query[1],)), f"leaks: {query[1]} is in two"),
        (dataclasses.replace(good, judge=(), classes=(*good.classes, stray, stray)), "is in two of its parts"),
        (dataclasses.replace(good, judge=(), classes=(*good.classes[:3], stray)), "one attribute away from"),
        (changed(2, query=()), "has no query file"),
        (dataclasses.replace(good, judge=("else.jpg",)), "names else.jpg, which has no attributes"),
    ]
    for manifest, message in cases:
        with pytest.raises(UserError, match=message):
            manifest_lib.check(manifest, OF)
    with pytest.raises(UserError, match="belongs to other data"):
        manifest_lib.check(good, OF | {good.classes[0].files["train"][0]: (1, 1, 1)})


def test_a_table_as_large_as_celebas_gives_the_papers_sizes():
    # The labels of 202,599 faces with CelebA's frequencies; independent within a sex, as CelebA's are not.
    found = stand_in.draw_attributes(202_599, 0)
    table = np.stack([found[name] for name in PAPER], axis=1).astype(np.int8)
    files = tuple(f"{row + 1:06d}.jpg" for row in range(len(table)))
    manifest = manifest_lib.choose(PAPER, files, table, np.zeros(len(files), np.int8), manifest_lib.Sizes(), 0)
    manifest_lib.check(manifest, dict(zip(files, map(tuple, table.tolist()), strict=True)))
    sizes = {part: 0 for part in ("train", "validation", "query", "reference")}
    for one in manifest.classes:
        for part, names in one.files.items():
            sizes[part] += len(names)
    assert sum(one.seen for one in manifest.classes) == 51 and len(manifest.classes) == 74
    # The paper's: 26,775 and 3,825 seen, 9,914 held out, of which each class has 431 at most.
    assert sizes == {"train": 26_775, "validation": 3825, "query": 2300, "reference": 9913 - 2300}
