import builtins
import gzip
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest

from cdisc import errors
from cdisc.data import digits


@pytest.fixture(scope="module")
def bundled():
    return digits.load("bundled")


def some_digits(num, seed=0):
    rng = np.random.default_rng(seed)
    return digits.Digits(
        images=rng.integers(0, 256, (num, 28, 28), np.uint8), labels=rng.integers(0, 10, num).astype(np.uint8)
    )


def idx_bytes(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root, halves, zipped=False):
    for prefix, half in zip(("train", "t10k"), halves, strict=True):
        for name, array in (("images-idx3-ubyte", half.images), ("labels-idx1-ubyte", half.labels)):
            content = idx_bytes(array)
            if zipped:
                (root / f"{prefix}-{name}.gz").write_bytes(gzip.compress(content))
            else:
                (root / f"{prefix}-{name}").write_bytes(content)


def test_bundled_digits_are_the_documented_ones(bundled):
    assert bundled.images.shape == (10000, 28, 28) and bundled.images.dtype == np.uint8
    counts = np.bincount(bundled.labels, minlength=10)
    assert counts.tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert digits.BUNDLED.is_file()
    readme = (digits.BUNDLED.parent / "README.md").read_text(encoding="utf-8")
    assert digits.fingerprint(bundled) in readme


def test_fingerprint_sees_pixels_labels_and_order():
    base = some_digits(20)
    changed_image, changed_label = base.images.copy(), base.labels.copy()
    changed_image[3, 4, 5] ^= 1
    changed_label[7] = (changed_label[7] + 1) % 10
    variants = [
        base,
        digits.Digits(changed_image, base.labels),
        digits.Digits(base.images, changed_label),
        digits.Digits(base.images[::-1], base.labels[::-1]),
    ]
    assert len({digits.fingerprint(variant) for variant in variants}) == 4
    assert digits.fingerprint(base) == digits.fingerprint(digits.Digits(base.images.copy(), base.labels.copy()))


def test_partition_is_stratified_complete_and_disjoint(bundled):
    parts = digits.partition(bundled)
    pictures = [{image.tobytes() for image in part.images} for part in parts]
    assert not (pictures[0] & pictures[1] or pictures[0] & pictures[2] or pictures[1] & pictures[2])
    assert set.union(*pictures) == {image.tobytes() for image in bundled.images}
    totals = sum(np.bincount(part.labels, minlength=digits.NUM_VALUES) for part in parts)
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        # Rounding moves at most one picture of a value from part to part.
        assert np.abs(np.bincount(part.labels, minlength=digits.NUM_VALUES) - share * totals).max() <= 1.0
        assert (np.diff(part.labels.astype(int)) >= 0).all()


def test_partition_does_not_depend_on_the_order_of_the_source():
    base = some_digits(300)
    order = np.random.default_rng(1).permutation(300)
    shuffled = digits.Digits(base.images[order], base.labels[order])
    for one, other in zip(digits.partition(base, 3), digits.partition(shuffled, 3), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert not np.array_equal(digits.partition(base, 3).train.images[:50], digits.partition(base, 4).train.images[:50])


def test_copies_of_a_picture_stay_in_one_part_under_their_smallest_label():
    base = some_digits(200)
    # Every picture twice, the copies claiming to be nines.
    doubled = digits.Digits(np.tile(base.images, (2, 1, 1)), np.concatenate([np.full(200, 9, np.uint8), base.labels]))
    parts = digits.partition(doubled)
    images = np.concatenate([part.images for part in parts])
    assert len({image.tobytes() for image in images}) == len(images) == 200
    label_of = {image.tobytes(): label for image, label in zip(base.images, base.labels, strict=True)}
    for part in parts:
        assert [label_of[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_partition_is_frozen(bundled):
    # A trained network's test pictures must never become training pictures of a later version.
    train, query, reference = (digits.fingerprint(part)[:16] for part in digits.partition(bundled))
    assert (train, query, reference) == ("44a645c88352e93f", "cb0679e2bf6f881f", "cf0db152d2aabfe9")


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, zipped):
    halves = some_digits(7), some_digits(4, seed=1)
    write_idx(tmp_path, halves, zipped)
    read = digits.load("idx", str(tmp_path))
    np.testing.assert_array_equal(read.images, np.concatenate([half.images for half in halves]))
    np.testing.assert_array_equal(read.labels, np.concatenate([half.labels for half in halves]))


@pytest.mark.parametrize(
    "place",
    [
        "{}.{}",
        "{}.{}.gz",
        "raw/{}-{}",
        "MNIST/raw/{}-{}",
        "MNIST/raw/{}-{}.gz",
        "{0}-{1}/{0}-{1}",
        "{0}.{1}/{0}.{1}",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_where_and_as_people_have_them(tmp_path, monkeypatch, place, packed):
    # Catches: one way to name them; a name's ending taken for the content's packing; a ~ that no shell expanded.
    monkeypatch.setenv("HOME", str(tmp_path))
    halves = some_digits(7), some_digits(4, seed=1)
    for prefix, half in zip(("train", "t10k"), halves, strict=True):
        for name, kind, array in (("images", "idx3-ubyte", half.images), ("labels", "idx1-ubyte", half.labels)):
            path = tmp_path / "digits" / place.format(f"{prefix}-{name}", kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = idx_bytes(array)
            path.write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "digits" / "FashionMNIST" / "raw").mkdir(parents=True)
    for root in (tmp_path / "digits", "~/digits"):
        read = digits.load("idx", str(root))
        np.testing.assert_array_equal(read.labels, np.concatenate([half.labels for half in halves]))
        np.testing.assert_array_equal(read.images, np.concatenate([half.images for half in halves]))


def test_one_of_the_files_may_be_named(tmp_path):
    halves = some_digits(7), some_digits(4, seed=1)
    write_idx(tmp_path, halves, zipped=True)
    assert len(digits.load("idx", str(tmp_path / "t10k-images-idx3-ubyte.gz")).labels) == 11
    with pytest.raises(errors.UserError, match="does not exist, nor with"):
        digits.load("idx", str(tmp_path / "none"))


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    # Catches: memory filled by a small file, and by a header that promises too much.
    write_idx(tmp_path, (some_digits(7), some_digits(4)))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(idx_bytes(some_digits(7).images) + bytes(2**27)))
    tracemalloc.start()
    with pytest.raises(errors.UserError, match="holds at least 5489 bytes of data and its header says 5488"):
        digits.load("idx", str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 28, 28))
    with pytest.raises(errors.UserError, match="says that it has 4294967295 pictures"):
        digits.load("idx", str(tmp_path))


def test_damaged_idx_files_are_the_persons_to_mend(tmp_path):
    halves = some_digits(7), some_digits(4)

    def refused(message, name, content):
        write_idx(tmp_path, halves)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.UserError, match=message):
            digits.load("idx", str(tmp_path))

    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    whole = idx_bytes(halves[0].images)
    refused("5487 bytes of data and its header says 5488", images, whole[:-1])
    refused("5489 bytes of data and its header says 5488", images, whole + b"\0")
    refused("no IDX file", images, b"\0\0\x0d\3" + whole[4:])
    refused("no IDX file", images, whole[:10])
    refused("no IDX file", labels, idx_bytes(halves[1].images))
    refused("4 pictures and 3 labels", labels, idx_bytes(halves[1].labels[:3]))
    refused("label 10", labels, idx_bytes(np.full(4, 10, np.uint8)))
    refused(r"pictures of \(32, 32\)", images, idx_bytes(np.zeros((7, 32, 32), np.uint8)))

    (tmp_path / images).unlink()
    with pytest.raises(errors.UserError, match="does not exist, nor with"):
        digits.load("idx", str(tmp_path))
    zipped = gzip.compress(whole)
    for damaged in (zipped[:-20], b"not gzip", zipped[:100] + b"\xff" * 40 + zipped[140:]):
        (tmp_path / f"{images}.gz").write_bytes(damaged)
        with pytest.raises(errors.UserError, match=r"cannot be read|no IDX file"):
            digits.load("idx", str(tmp_path))


def test_unknown_sources_and_missing_roots_are_refused():
    with pytest.raises(errors.UserError, match='"mnist" does not exist: choose bundled, idx or tfds'):
        digits.load("mnist")
    for source in ("idx", "tfds"):
        for root in (None, ""):
            with pytest.raises(errors.UserError, match=r"set config\.data\.root"):
                digits.load(source, root)


def fake_tfds(monkeypatch, read):
    """Puts a module in place of tensorflow_datasets whose prepared folders give `read(split)`."""
    builder = types.SimpleNamespace(as_data_source=lambda split: read(split))
    module = types.ModuleType("tensorflow_datasets")
    module.builder_from_directory = lambda root: builder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_tfds_reads_both_splits_in_order(tmp_path, monkeypatch):
    halves = {"train": some_digits(5), "test": some_digits(3, seed=1)}

    def read(split):
        half = halves[split]
        return [{"image": i[..., None], "label": int(n)} for i, n in zip(half.images, half.labels, strict=True)]

    fake_tfds(monkeypatch, read)
    (tmp_path / "dataset_info.json").write_text("{}")
    result = digits.load("tfds", str(tmp_path))
    np.testing.assert_array_equal(result.images, np.concatenate([halves["train"].images, halves["test"].images]))
    np.testing.assert_array_equal(result.labels, np.concatenate([halves["train"].labels, halves["test"].labels]))
    assert result.labels.dtype == np.uint8


def test_tfds_errors_are_the_persons_to_mend(tmp_path, monkeypatch):
    def broken(split):
        raise NotImplementedError("no random access\nto tfrecord")

    fake_tfds(monkeypatch, broken)
    with pytest.raises(errors.UserError, match=r"no dataset_info\.json"):
        digits.load("tfds", str(tmp_path))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(errors.UserError, match="NotImplementedError: no random access to tfrecord"):
        digits.load("tfds", str(tmp_path))
    fake_tfds(monkeypatch, lambda split: [])
    with pytest.raises(errors.UserError, match="cannot be read as digits"):
        digits.load("tfds", str(tmp_path))
    fake_tfds(monkeypatch, lambda split: [{"image": np.zeros((32, 32, 3), np.uint8), "label": 1}])
    with pytest.raises(errors.UserError, match="cannot be read as digits"):
        digits.load("tfds", str(tmp_path))


def test_without_tfds_the_message_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_tfds(name, *args, **kwargs):
        if name == "tensorflow_datasets":
            raise ModuleNotFoundError("No module named 'tensorflow_datasets'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tfds)
    with pytest.raises(errors.UserError, match=r"pip install 'cdisc\[tfds\]'"):
        digits.load("tfds", str(tmp_path))
