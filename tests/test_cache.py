import errno
import json
import shutil
import signal

import numpy as np
import pytest

from cdisc import signals, storage
from cdisc.data import cache
from cdisc.errors import UserError

SHAPE = (10, 2, 2, 3)


class Maker:
    """Pictures of their own row number; remembers what it was asked for, and may stop at a row."""

    def __init__(self, stop=None):
        self.stop, self.asked = stop, []

    def __call__(self, rows):
        if self.stop in rows:
            raise KeyboardInterrupt
        self.asked += list(rows)
        return np.stack([np.full(SHAPE[1:], row + 1, np.uint8) for row in rows])


def pictures(folder, make, **changes):
    arguments = {"about": {"by": "one"}, "shape": SHAPE} | changes
    return cache.pictures(folder, make=make, what="making", at_once=4, **arguments).images


def expected(shape=SHAPE):
    return np.broadcast_to(np.arange(1, shape[0] + 1, dtype=np.uint8)[:, None, None, None], shape)


def test_pictures_are_made_once_and_kept(tmp_path):
    # Catches: making again what is there, a last batch that is left out or runs over, an array that can be written.
    first, again = Maker(), Maker()
    images = pictures(tmp_path / "faces", first)
    np.testing.assert_array_equal(images, expected())
    assert isinstance(images, np.memmap) and not images.flags.writeable
    np.testing.assert_array_equal(pictures(tmp_path / "faces", again), expected())
    assert (first.asked, again.asked) == (list(range(10)), [])


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    # Catches: beginning anew, and skipping rows that were not written.
    with pytest.raises(KeyboardInterrupt):
        pictures(tmp_path, Maker(stop=6))
    rest = Maker()
    np.testing.assert_array_equal(pictures(tmp_path, rest), expected())
    assert rest.asked == list(range(4, 10))


def test_a_signal_stops_it_between_two_batches_and_what_is_drawn_is_kept(tmp_path, monkeypatch):
    # Catches: a batch after the signal, and one that is drawn and not kept.
    monkeypatch.setattr(signals, "_asked", None)
    asked = Maker()

    def make(rows):
        signals.ask(signal.SIGTERM)
        return asked(rows)

    with pytest.raises(signals.Stopped):
        pictures(tmp_path, make)
    monkeypatch.setattr(signals, "_asked", None)
    rest = Maker()
    np.testing.assert_array_equal(pictures(tmp_path, rest), expected())
    assert (asked.asked, rest.asked) == (list(range(4)), list(range(4, 10)))


def test_a_finished_cache_may_be_read_only(tmp_path, monkeypatch):
    # Catches: asking for the right to write where nothing is to be written, and not asking where something is.
    pictures(tmp_path / "whole", Maker())
    with pytest.raises(KeyboardInterrupt):
        pictures(tmp_path / "part", Maker(stop=6))
    monkeypatch.setattr(storage.os, "access", lambda folder, mode: False)
    np.testing.assert_array_equal(pictures(tmp_path / "whole", Maker()), expected())
    for name in ("part", "new"):
        with pytest.raises(UserError, match=r"cannot be written: set --config\.data\.cache to another folder"):
            pictures(tmp_path / name, Maker())


def test_a_disk_that_fills_up_is_a_sentence_about_the_cache(tmp_path, monkeypatch):
    # Catches: a write through the map, which a full disk ends with a signal; the advice to move the workdir.
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as disk,
        pytest.raises(UserError, match=r"disk is full; .*--config\.data\.cache"),
    ):
        disk.setattr(cache.os, "fsync", full)
        pictures(tmp_path, Maker())
    np.testing.assert_array_equal(pictures(tmp_path, Maker()), expected())


@pytest.mark.parametrize("changes", [{"about": {"by": "two"}}, {"shape": (11, 2, 2, 3)}])
def test_a_cache_made_by_another_version_is_refused(tmp_path, changes):
    pictures(tmp_path, Maker())
    with pytest.raises(UserError, match="holds other pictures or was made by another version: delete that folder"):
        pictures(tmp_path, Maker(), **changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "images.npy").write_bytes(b"\x93NUMPY"),
        lambda folder: np.save(folder / "images.npy", np.zeros((9, 2, 2, 3), np.uint8)),
        lambda folder: flip(folder / "images.npy", -1),
        lambda folder: flip(folder / "images.npy", -SHAPE[0] * 12),
        lambda folder: edit(folder, checksums=[1, 2]),
        lambda folder: edit(folder, missing=[[3, "damaged"]]),
        lambda folder: (folder / "pictures.json").write_bytes(b"\xff"),
        lambda folder: (folder / "pictures.json").write_text("[]"),
        lambda folder: (folder / "pictures.json").write_text('{"sha256": 1}'),
        lambda folder: (folder / "pictures.json").write_text("[" * 100_000),
    ],
)
def test_a_damaged_cache_is_the_persons_to_delete(tmp_path, damage):
    # Catches: a flipped byte that is trained on, more rows counted than were made; advice that does not lead on.
    home = tmp_path / "faces"
    pictures(home, Maker())
    damage(home)
    with pytest.raises(UserError, match=r"faces/(images|pictures)\.\w+ .*: delete that folder, it is made again"):
        pictures(home, Maker())
    shutil.rmtree(home)
    np.testing.assert_array_equal(pictures(home, Maker()), expected())


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def edit(folder, **changes):
    path = folder / "pictures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_rows_that_cannot_be_made_are_black_and_named(tmp_path):
    # Catches: a reason that the next load forgets, and one that is given to another row.
    def make(rows):
        return [f"no {row}" if row % 4 == 3 else Maker()(range(row, row + 1))[0] for row in rows]

    def kept():
        return cache.pictures(tmp_path, about={}, shape=SHAPE, make=make, what="making", at_once=4)

    whole = np.where(np.arange(10)[:, None, None, None] % 4 == 3, 0, expected())
    for found in (kept(), kept()):
        assert found.missing == {3: "no 3", 7: "no 7"}
        np.testing.assert_array_equal(found.images, whole)


def test_the_note_says_what_the_pictures_are(tmp_path):
    pictures(tmp_path, Maker())
    said = json.loads((tmp_path / "pictures.json").read_text())
    assert (said["about"], said["shape"], len(said["checksums"])) == ({"by": "one"}, [10, 2, 2, 3], 3)


def test_a_cache_where_the_user_says(tmp_path, monkeypatch):
    # Catches: a folder called "~", a crash for a user whom the system does not know.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder("~/mine", "faces") == tmp_path / "mine"
    assert str(cache.folder("~nobody knows/mine", "faces")) == "~nobody knows/mine"
    assert cache.folder("", "faces") == tmp_path / "xdg" / "cdisc" / "faces"
