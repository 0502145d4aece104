import errno
import itertools
import os
import pathlib
import socket
import subprocess

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cdisc import storage
from cdisc.app import checkpoints
from cdisc.errors import UserError
from cdisc.networks import bundled


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


def make_tree() -> State:
    return State(
        step=jnp.int32(7),
        params={
            "dense": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "nothing": {}},
            "pair": (jnp.asarray([True, False]), jnp.asarray([1.5, -2.25], jnp.bfloat16)),
        },
    )


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("written") / "state"
    checkpoints.save(path, make_tree())
    return path


@pytest.fixture
def saved(written, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    path = tmp_path / "state"
    for file in written.rglob("*"):
        if file.is_file():
            copy = path / file.relative_to(written)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return path


def test_a_nested_tree_comes_back_bit_for_bit(written):
    # Catches: restoring to other types, or in another order of the leaves.
    assert checkpoints.exists(written)
    restored = checkpoints.restore(written, jax.eval_shape(make_tree))
    assert_same(restored, make_tree())


def test_a_tree_is_written_in_place_of_another(saved):
    # Catches: leaving the old arrays, or the folders of the exchange, behind.
    checkpoints.save(saved, {"x": jnp.arange(3.0)})
    np.testing.assert_array_equal(checkpoints.restore(saved, {"x": jnp.zeros(3)})["x"], [0.0, 1.0, 2.0])
    assert [path.name for path in saved.parent.iterdir()] == ["state"]


def test_missing(tmp_path):
    assert not checkpoints.exists(tmp_path / "none")
    with pytest.raises(UserError, match=r"none holds no finished checkpoint: delete"):
        checkpoints.restore(tmp_path / "none", make_tree())


def largest_file(path: pathlib.Path) -> pathlib.Path:
    return max((file for file in (path / "arrays" / "d").iterdir()), key=lambda file: file.stat().st_size)


def cut_short(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, pathlib.Path.unlink])
def test_damaged_arrays_are_refused(saved, damage, capfd):
    # Catches: no comparison of the checksums (Orbax then fails with tracebacks from its threads).
    file = largest_file(saved)
    damage(file)
    with pytest.raises(UserError, match=rf"state is damaged \(arrays/d/{file.name} is not .*\): delete it and run"):
        checkpoints.restore(saved, make_tree())
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"leaves": {"x": 3}, "files": {}}'])
def test_a_damaged_manifest_is_refused(saved, content):
    # Catches: catching JSON's errors alone; a manifest without a checksum of its own.
    manifest = saved / "manifest.json"
    manifest.write_text(content or manifest.read_text().replace("float32", "float16"))
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        checkpoints.restore(saved, make_tree())


@pytest.mark.parametrize(("owner", "name"), [(pathlib.Path, "read_bytes"), (checkpoints, "_checksums")])
def test_what_cannot_be_read_now_is_not_removed(saved, monkeypatch, owner, name):
    # Catches: taking a network folder that does not answer for a damaged checkpoint, of which the newest is removed.
    steps = saved.parent / "steps"
    for step in (1, 2):
        checkpoints.save_step(steps, step, make_tree(), keep=2)

    def stale(*args, **kwargs):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stale)
        with pytest.raises(
            UserError, match=r"step_00000002\S* cannot be read \(.*Stale file handle\): see that its disk"
        ):
            checkpoints.restore_newest(steps, make_tree())
    assert checkpoints.steps(steps) == [1, 2]


def test_the_system_s_error_in_tensorstore_s_words(saved, monkeypatch):
    # Catches: letting it through as a mistake in the code, or repeating all of its words, or taking it for damage.
    def fail(*args, **kwargs):
        raise ValueError(f"NOT_FOUND: Stale file handle [tensorstore_spec='{'x' * 900}'] [os_error_code='116']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(UserError, match=r"not saved: the folder cannot .* \(NOT_FOUND: Stale .{150,190}116'\]\);"):
        checkpoints.save(saved, make_tree())
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", fail)
    with pytest.raises(UserError, match=r"state cannot be read \(NOT_FOUND: Stale .{150,190}116'\]\): see") as told:
        checkpoints.restore(saved, make_tree())
    assert not isinstance(told.value, storage.DamagedError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["dense"].update(kernel=jnp.zeros((4, 3))),
            r"state: params/dense/kernel is \[\[3, 4\], 'float32'\] where \[\[4, 3\], 'float32'\] is",
        ),
        (
            lambda p: p["dense"].update(kernel=jnp.zeros((3, 4), jnp.bfloat16)),
            r"kernel is .*float32.* where .*bfloat16",
        ),
        (lambda p: p["dense"].update(bias=jnp.zeros(4)), r"params/dense/bias is None where .*float32"),
        (lambda p: p.pop("dense"), r"params/dense/kernel is .*float32.* where None is expected"),
    ],
)
def test_another_networks_checkpoint_is_refused_by_leaf(written, change, message):
    # Catches: leaving out any one of the four comparisons (Orbax would cast, or fill in what is missing).
    like = make_tree()
    change(like.params)
    with pytest.raises(UserError, match=message):
        checkpoints.restore(written, like)


def test_a_full_disk_keeps_what_was_there(saved, monkeypatch):
    # Catches: removing the old folder first, leaving the half-written one, or letting OSError through.
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "save", full)
        with pytest.raises(UserError, match=r"state was not saved: the disk is full; make room"):
            checkpoints.save(saved, {"x": jnp.zeros(3)})
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "replace", full)  # of the manifest
        with pytest.raises(UserError, match=r"state was not saved: the disk is full"):
            checkpoints.save(saved, {"x": jnp.zeros(3)})
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", full)
        with pytest.raises(UserError, match=r"notes\.txt was not saved: the disk is full"):
            storage.write_text(saved.parent / "notes.txt", "text")
    assert [path.name for path in saved.parent.iterdir()] == ["state"]
    assert_same(checkpoints.restore(saved, make_tree()), make_tree())


def test_a_full_disk_in_orbax_s_words(tmp_path, monkeypatch):
    # Its storage layer raises ValueError. Catches: not looking into its words.
    def save(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", save)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(tmp_path / "x", {"x": jnp.zeros(3)})


def test_steps_are_kept_to_the_last_few(tmp_path):
    # Catches: removing the newest, sorting names as text, counting what is not finished.
    folder = tmp_path / "train"
    assert checkpoints.steps(folder) == []
    for step in (5, 10, 200):
        checkpoints.save_step(folder, step, {"x": jnp.full(2, float(step))}, keep=2)
    (folder / "step_00000300").mkdir()
    (folder / "step_00000400.partial").mkdir()
    (folder / "step_00000400.partial" / "manifest.json").write_text("{}")
    assert checkpoints.steps(folder) == [10, 200]
    like = {"x": jnp.zeros(2)}
    np.testing.assert_array_equal(checkpoints.restore(checkpoints.step_path(folder, 10), like)["x"], [10.0, 10.0])
    # What kills have left goes with the next step.
    checkpoints.save_step(folder, 201, like, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000200", "step_00000201"]


def test_the_newest_step_that_is_whole(tmp_path, capsys):
    # Catches: the newest alone, taking another network's for a damaged one, leaving nothing where all are damaged.
    folder, like = tmp_path / "train", {"x": jnp.zeros(2000)}
    assert checkpoints.restore_newest(folder, like) is None
    for step in (5, 10, 15):
        checkpoints.save_step(folder, step, {"x": jnp.full(2000, float(step))}, keep=3)
    with pytest.raises(UserError, match="another network"):
        checkpoints.restore_newest(folder, {"y": jnp.zeros(2000)})
    assert checkpoints.restore_newest(folder, like)["x"][0] == 15.0
    assert capsys.readouterr().err == ""
    flip_a_bit(largest_file(folder / "step_00000015"))
    (folder / "step_00000010" / "manifest.json").write_text("{")
    assert checkpoints.restore_newest(folder, like)["x"][0] == 5.0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "step_00000015 is damaged (arrays/d/" in warnings[0]
    assert warnings[0].endswith("is not what was written): it is removed, and step_00000010 is tried in its place.")
    assert checkpoints.steps(folder) == [5]
    flip_a_bit(largest_file(folder / "step_00000005"))
    with pytest.raises(storage.DamagedError, match=r"step_00000005 is damaged .*: delete it and run again"):
        checkpoints.restore_newest(folder, like)
    assert checkpoints.steps(folder) == [5]


def test_killed_at_any_moment_of_saving(tmp_path, monkeypatch):
    # The process ends before, or after, each thing that it does to the folders. Catches: a manifest written before
    # the arrays, saving in place, a leftover that hinders the next time.
    class KilledError(BaseException):
        pass

    for moment in itertools.count():
        folder = tmp_path / str(moment)
        checkpoints.save_step(folder, 1, {"x": jnp.ones(2)}, keep=1)
        done = itertools.count()
        with monkeypatch.context() as patch:
            for where, name in (
                (pathlib.Path, "mkdir"),
                (pathlib.Path, "rename"),
                (storage, "write_json"),
                (ocp.StandardCheckpointer, "save"),
                (checkpoints.shutil, "rmtree"),
            ):
                patch.setattr(where, name, dying(getattr(where, name), done, moment, KilledError))
            try:
                checkpoints.save_step(folder, 2, {"x": jnp.full(2, 2.0)}, keep=1)
            except KilledError:
                pass
            else:
                break
        assert checkpoints.restore_newest(folder, {"x": jnp.zeros(2)})["x"][0] in (1.0, 2.0)
        checkpoints.save_step(folder, 2, {"x": jnp.full(2, 3.0)}, keep=1)
        assert checkpoints.restore_newest(folder, {"x": jnp.zeros(2)})["x"][0] == 3.0
        assert [path.name for path in folder.iterdir()] == ["step_00000002"]
    assert moment > 8


def dying(fn, done, moment, error):
    """`fn`, until `moment` calls have begun or ended."""

    def call(*args, **kwargs):
        if next(done) == moment:
            raise error
        result = fn(*args, **kwargs)
        if next(done) == moment:
            raise error
        return result

    return call


def test_write_text_replaces_the_file_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    storage.write_text(path, "one")
    storage.write_text(path, "two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_what_is_renamed_is_on_its_disk(tmp_path, monkeypatch):
    # Catches: files that are empty after a power failure, whole as their name says they are.
    synced, renamed, missed = set(), [], []
    monkeypatch.setattr(storage.os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))

    def watch(move):
        def moving(self, target):
            if self.parent == tmp_path:
                renamed.append(target.name)
                files = [path for path in (self, *self.rglob("*")) if path.is_file()]
                missed.extend(path for path in files if path.stat().st_ino not in synced)
            return move(self, target)

        return moving

    for name in ("rename", "replace"):
        monkeypatch.setattr(pathlib.Path, name, watch(getattr(pathlib.Path, name)))
    checkpoints.save(tmp_path / "saved", {"x": jnp.zeros(3)})
    storage.write_text(tmp_path / "a.txt", "one")
    assert (renamed, missed) == (["saved", "a.txt"], [])


@pytest.mark.parametrize(("module", "name"), [("os", "getpid"), ("socket", "gethostname")])
def test_processes_that_write_one_file_at_once(tmp_path, monkeypatch, module, name):
    # Catches: a temporary file that another process, of this host or another, writes to or takes away.
    path, replace = tmp_path / "a.txt", pathlib.Path.replace

    def after_another(self, target):
        monkeypatch.setattr(pathlib.Path, "replace", replace)
        with monkeypatch.context() as there:
            there.setattr(getattr(storage, module), name, lambda: "other")
            storage.write_text(path, "two")
        return self.replace(target)

    monkeypatch.setattr(pathlib.Path, "replace", after_another)
    storage.write_text(path, "one")
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_process_leaves_nothing_that_stays(tmp_path):
    # Catches: leftovers of every kill, a file taken away from a process that lives or that is on another host.
    dead, host = subprocess.Popen(["true"]), socket.gethostname()
    dead.wait()
    kept = {f"a.txt.{host}.{os.getppid()}.partial", f"a.txt.other.{dead.pid}.partial", f"b.txt.{host}.1.partial"}
    for name in (*kept, f"a.txt.{host}.{dead.pid}.partial"):
        (tmp_path / name).touch()
    storage.write_text(tmp_path / "a.txt", "one")
    assert {file.name for file in tmp_path.iterdir()} == kept | {"a.txt"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "[]",
        lambda text: "5",
        lambda text: "[" * 10**5,
        lambda text: text[:-3],
        lambda text: text.replace("one", "own"),
        lambda text: text.replace("0.5", "-0.5"),
        lambda text: text.replace("sha256", "sha255"),
        lambda text: b"\xff" + text.encode(),
        lambda text: b"",
    ],
)
def test_json_that_was_changed_is_not_read(tmp_path, damage):
    # Catches: an error of the parser's let through, a change that is believed.
    path, content = tmp_path / "a.json", {"one": (0.5, None), "other": {"x": "é"}}
    storage.write_json(path, content)
    assert storage.read_json(path, "x") == {"one": [0.5, None], "other": {"x": "é"}}
    changed = damage(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(storage.DamagedError, match=r"a\.json is not as this version wrote it: mend it\.$"):
        storage.read_json(path, "mend it")


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read_json(tmp_path / "none.json", "x")
    with pytest.raises(UserError, match=r"cannot be read \(.*directory"):
        storage.read_json(tmp_path, "x")


def test_a_path_near_the_system_s_limit(tmp_path, monkeypatch):
    # Catches: minutes in which Orbax tries again, and a disk that is called full.
    monkeypatch.chdir(tmp_path)
    deep = tmp_path
    while len(str(deep)) < 3600:
        deep = deep / ("d" * 100)
    storage.writable(deep)
    deep = deep / ("d" * 200)
    with pytest.raises(
        UserError, match=r"^/\S{49}\.\.\. is too long a path to hold files: choose another --workdir\.$"
    ):
        storage.writable(deep)


def test_writable(tmp_path, monkeypatch):
    storage.writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --workdir"):
        storage.writable(tmp_path / "file" / "b")
    # Catches: a folder whose name is no UTF-8, to which Orbax answers with a traceback when the first stage is done.
    with pytest.raises(UserError, match=r"run.udcff cannot be written \(.*: choose another --workdir"):
        storage.writable(tmp_path / os.fsdecode(b"run\xff"))
    assert not (tmp_path / os.fsdecode(b"run\xff")).exists()
    monkeypatch.setattr(storage.os, "access", lambda folder, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        storage.writable(tmp_path)


ABOUT = {"config": "c" * 64, "data": "d" * 64}


def test_bundle_round_trip(tmp_path):
    # Half precision keeps eleven bits. Catches: returning float16, another order of the leaves.
    tree = {"kernel": jnp.linspace(0.1, 1.0, 7), "nothing": {}, "pair": (jnp.ones((2, 3)), jnp.float32(0.1))}
    path = tmp_path / "bundle.npz"
    bundled.save_npz(path, tree, ABOUT)
    restored = bundled.restore_npz(path, jax.eval_shape(lambda: tree), ABOUT)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=2.0**-11)


def test_bundles_of_other_runs_are_refused(tmp_path):
    path = tmp_path / "bundle.npz"
    bundled.save_npz(path, {"kernel": jnp.ones(3)}, ABOUT)
    with pytest.raises(UserError, match=r"bundle.npz was made with data dddd.* and this run has eeee"):
        bundled.restore_npz(path, {"kernel": jnp.ones(3)}, ABOUT | {"data": "e" * 64})
    with pytest.raises(UserError, match=r"no array kernel of shape \(4,\)"):
        bundled.restore_npz(path, {"kernel": jnp.ones(4)}, ABOUT)
    with pytest.raises(UserError, match=r"no array bias"):
        bundled.restore_npz(path, {"bias": jnp.ones(3)}, ABOUT)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "text"])
def test_unreadable_bundles_are_refused(tmp_path, damage):
    # Catches: not expecting zipfile's and zlib's own errors.
    path = tmp_path / "bundle.npz"
    tree = {"kernel": jnp.arange(2000.0)}
    bundled.save_npz(path, tree, ABOUT)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        cut_short(path)
    elif damage == "flipped":
        flip_a_bit(path)
    else:
        path.write_text("this is no archive")
    with pytest.raises(UserError, match=r"cannot be read .*from_scratch=True"):
        bundled.restore_npz(path, tree, ABOUT)
