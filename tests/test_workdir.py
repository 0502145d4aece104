"""What may change in a workdir, and what is done anew: decided by who reads a field first."""

import errno
import json
import os
import shutil
import socket

import pytest
from commands import config_of

from cdisc.app import workdir as workdir_lib
from cdisc.app.config import as_dict, read
from cdisc.app.workdir import identity
from cdisc.errors import UserError

QUERIES = {"0000 one": "aa", "0001 two": "bb"}


@pytest.fixture
def bind(tmp_path):
    """Binds the workdir to a configuration with some changes."""

    def bind(changes=(), data="digits", queries=QUERIES):
        workdir_lib.bind(tmp_path, bound(changes, data, queries))
        assert json.loads((tmp_path / "config.json").read_text())["queries"] == queries

    return bind


def results(workdir, *stages):
    """What the stages would have left."""
    for stage in stages:
        for query in ("query_0000", "query_0001"):
            (workdir / stage / query).mkdir(parents=True)
    if "evaluate" in stages:
        (workdir / "evaluate" / "judge").mkdir()
        (workdir / "results.json").write_text("{}")


def left(workdir):
    """What of it is still there."""
    names = ("evaluate/query_0000", "evaluate/query_0001", "evaluate/judge", "results.json")
    kept = {name for name in names if (workdir / name).exists()}
    assert all((workdir / stage / "query_0001").exists() for stage in ("pretrain", "discover", "adapt"))
    return kept


SAMPLES = {"evaluate/query_0000", "evaluate/query_0001"}
JUDGE = {"evaluate/judge"}
ALL = ("pretrain", "discover", "adapt", "evaluate", "figures")


def bound(changes, data="digits", queries=QUERIES):
    """What a workdir is bound to: a configuration with some changes, data and queries."""
    config = config_of("colormnist.py", "tiny")
    config.update_from_flattened_dict(dict(changes))
    return {"config": as_dict(read(config)), "data": data, "queries": queries}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, SAMPLES | JUDGE | {"results.json"}),
        ({"sampling.batch": 3}, SAMPLES | JUDGE | {"results.json"}),
        ({"pretrain.restore": "elsewhere", "data.root": "there"}, SAMPLES | JUDGE | {"results.json"}),
        ({"evaluate.references": 9}, SAMPLES | JUDGE),
        ({"evaluate.k": 2}, SAMPLES | JUDGE),
        ({"evaluate.judge.steps": 31}, SAMPLES),
        ({"evaluate.samples": 32}, JUDGE),
        ({"guidance.w0": 0.5}, JUDGE),
        ({"evaluate.query_only_sigmas": (0.5,)}, JUDGE),
        ({"evaluate.methods.lora.guidance": 3.0}, JUDGE),
        ({"evaluate.samples": 32, "evaluate.judge.steps": 31}, set()),
    ],
)
def test_what_evaluation_alone_reads_may_change(bind, tmp_path, changes, kept):
    # Catches: any of it refused, samples of other options kept, hours of other stages done anew.
    bind()
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")
    bind(changes)
    assert left(tmp_path) == kept
    bind(changes)
    assert left(tmp_path) == kept
    # What is kept is still known as this run's, and what is not would be refused if it were put back.
    same = {reader for reader in ALL if identity(bound({}), reader) == identity(bound(changes), reader)}
    assert same >= {"pretrain", "discover", "adapt"}
    assert ("evaluate" in same, "figures" in same) == (kept >= SAMPLES, "results.json" in kept)


def test_a_method_may_be_added(tmp_path):
    config = config_of("colormnist.py", "tiny")
    content = {"config": as_dict(read(config)), "data": "digits", "queries": QUERIES}
    workdir_lib.bind(tmp_path, content)
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")
    config.evaluate.methods.strong = {"level": "lora", "guidance": 3.0}
    workdir_lib.bind(tmp_path, content | {"config": as_dict(read(config))})
    assert left(tmp_path) == JUDGE


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"pretrain.steps": 61}, ("pretrain", "discover", "adapt")),
        ({"data.seed": 1}, ("pretrain", "discover", "adapt")),
        ({"network.norm_eps": 1e-4}, ("pretrain", "discover", "adapt")),
        ({"diffusion.beta_end": 0.1}, ("pretrain", "discover", "adapt")),
        ({"discover.max_residual": 0.5}, ("discover", "adapt")),
        ({"seed": 1}, ("discover", "adapt")),
        ({"sampling.num_steps": 5}, ("adapt",)),
        ({"adapt.levels.lora.steps": 5}, ("adapt",)),
        ({"adapt.guidance.w0": 5.0}, ("adapt",)),
    ],
)
def test_what_would_lose_work_is_refused_with_both_values(bind, tmp_path, changes, lost):
    # Catches: a field given to a later stage than the first that reads it; results of two configurations in one place.
    bind()
    bind(changes)  # nothing has begun
    bind()
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"config.{name} was .* and is {value}. .* or remove {' and '.join(lost)} from"):
        bind(changes)
    assert left(tmp_path) == SAMPLES | JUDGE | {"results.json"}
    same = {reader for reader in ALL if identity(bound({}), reader) == identity(bound(changes), reader)}
    assert same == {"pretrain", "discover", "adapt"} - {*lost}
    for stage in lost:
        (tmp_path / stage).rename(tmp_path / f"no_{stage}")
    bind(changes)
    assert not (tmp_path / "evaluate" / "query_0000").exists()
    assert (tmp_path / "evaluate" / "judge").exists() == ("pretrain" not in lost)


def test_the_best_of_what_is_saved_is_another_one_where_something_else_is_saved(bind, tmp_path):
    bind({"pretrain.save_every": 3})
    results(tmp_path, "pretrain")
    bind({"pretrain.save_every": 4})
    shutil.rmtree(tmp_path / "pretrain")
    bind({"pretrain.result": "best"})
    results(tmp_path, "pretrain")
    with pytest.raises(UserError, match=r"config\.pretrain\.save_every was 25 and is 4"):
        bind({"pretrain.result": "best", "pretrain.save_every": 4})


def test_a_field_that_comes_or_goes_is_a_change(bind, tmp_path):
    # Catches: comparing one way only, or tuples with the lists that JSON makes of them.
    before, after = bound({}), bound({})
    before["config"]["discover"]["old"], after["config"]["discover"]["new"] = 1, (1, 2)
    assert workdir_lib._changes(before, after) == {
        "config.discover.new": (None, (1, 2)),
        "config.discover.old": (1, None),
    }
    workdir_lib.bind(tmp_path, after)
    workdir_lib.bind(tmp_path, after)
    results(tmp_path, "pretrain", "discover")
    workdir_lib.bind(tmp_path, after)


def test_queries_may_be_added_at_the_end(bind, tmp_path):
    # Catches: work on the first ones lost, results in the place of another query's.
    bind()
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")
    bind({"evaluate.num_queries": 3}, queries=QUERIES | {"0002 three": "cc"})
    assert left(tmp_path) == SAMPLES | JUDGE
    for queries in (QUERIES, {"0000 two": "bb", "0001 one": "aa", "0002 three": "cc"}, {"0000 one": "ab"}):
        with pytest.raises(UserError, match=r"queries\.0.* remove discover and adapt"):
            bind(queries=queries)


def test_data_are_known_by_what_they_are(bind, tmp_path):
    bind({"data.root": "here"})
    results(tmp_path, "pretrain")
    bind({"data.root": "there"})
    with pytest.raises(UserError, match="data was 'digits' and is 'others'"):
        bind(data="others")


def test_results_are_bound_to_their_data_and_the_figures_to_all_queries():
    # Catches: results that are copied from a run on other data, or of other pictures, believed.
    assert identity(bound({}, data="others"), "pretrain") != identity(bound({}), "pretrain")
    for more in (QUERIES | {"0002 three": "cc"}, QUERIES | {"0001 two": "cc"}):
        assert identity(bound({}, queries=more), "evaluate") == identity(bound({}), "evaluate")
        assert identity(bound({}, queries=more), "figures") != identity(bound({}), "figures")


@pytest.mark.parametrize("text", ['{"config', "[]", "{}", "[" * 10**5, "an edit", None])
def test_a_record_that_is_not_there_or_not_what_was_written(bind, tmp_path, text):
    # Catches: a change that looks like another command's, results of an unknown configuration taken for this one's.
    bind()
    path, before = tmp_path / "config.json", (tmp_path / "config.json").read_text()
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")
    if text is None:
        path.unlink()
    else:
        path.write_text(before.replace('"seed": 0', '"seed": 1') if text == "an edit" else text)
    advised = "pretrain and discover and adapt and evaluate and results.json" + " and config.json" * (text is not None)
    with pytest.raises(UserError, match=rf"config\.json, .* or remove {advised} from this one"):
        bind()
    assert left(tmp_path) == SAMPLES | JUDGE | {"results.json"}
    for name in advised.split(" and "):
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    bind()
    assert path.read_text() == before
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["config.json"]


@pytest.mark.parametrize("name", ["config.json", "results.json", "evaluate/query_0000"])
def test_files_of_something_else_are_left_alone(bind, tmp_path, name):
    # Catches: a network's config.json, or whatever results.json there is in the folder, gone without a word.
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match=f"choose another --workdir, or remove {name.partition('/')[0]} from this one"):
        bind()
    assert (tmp_path / name).read_text() == '{"_class_name": "UNet2DModel"}'


def test_a_removal_that_is_interrupted_is_done_again(bind, tmp_path, monkeypatch):
    # Catches: the new configuration written before what it makes outdated is gone.
    bind()
    results(tmp_path, "pretrain", "discover", "adapt", "evaluate")

    def killed(path, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workdir_lib.pathlib.Path, "unlink", killed)
        bind({"evaluate.samples": 32})
    bind({"evaluate.samples": 32})
    assert left(tmp_path) == JUDGE


def test_a_folder_is_one_processs_alone(tmp_path, monkeypatch, capsys):
    # Catches: no lock, one that outlives its holder, the holder's name wiped by those who are refused.
    with workdir_lib.locked(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(UserError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}: wait"),
                workdir_lib.locked(tmp_path),
            ):
                pass
    with workdir_lib.locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        # Catches: a lock that whoever removes the file gives free.
        (tmp_path / "lock").unlink()
        with pytest.raises(UserError, match="in use by another process"), workdir_lib.locked(tmp_path):
            pass
        (tmp_path / "lock").write_bytes(b"\xff" * 5000)
        with pytest.raises(UserError, match=r"in use by .{200}: wait"), workdir_lib.locked(tmp_path):
            pass

    # Catches: a run that ends well although another one may have begun in the folder's place.
    other = tmp_path / "other"
    other.mkdir()
    removed = r"other was removed while this run used it, .*: choose another --workdir"
    with pytest.raises(UserError, match=removed), workdir_lib.locked(other):
        other.rename(tmp_path / "moved")
        other.mkdir()

    def unsupported(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir_lib.fcntl, "flock", unsupported)
    with workdir_lib.locked(tmp_path):
        assert "cannot be locked (No locks available): see to it" in capsys.readouterr().err
