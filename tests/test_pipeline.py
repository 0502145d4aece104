import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, assert_same_checkpoints, config_of, run_command
from PIL import Image

import cdisc
from cdisc import signals
from cdisc.app import checkpoints, pipeline
from cdisc.app.config import read
from cdisc.app.report import results as results_lib
from cdisc.app.stages import saved
from cdisc.app.stages.saved import read_seconds, saved_by_query
from cdisc.errors import UserError

PLANAR_OVERRIDES = {
    "discover.timesteps": (100, 300),
    "discover.starts_per_t": 4,
    "discover.capacity": 16,
    "sampling.num_steps": 6,
    "adapt.class_draws": 16,
    "evaluate.num_queries": 2,
    "evaluate.samples": 16,
    "evaluate.references": 16,
    "evaluate.query_only_sigmas": (0.1,),
}
QUERY_ONLY = ["query_only sigma=0.1", "query_only sigma=1"]


def planar_config():
    config = config_of("mixture.py")
    config.update_from_flattened_dict(PLANAR_OVERRIDES)
    return read(config)


def snapshot(folder: pathlib.Path) -> dict[str, int]:
    """When every checkpoint in `folder` was written."""
    return {
        path.parent.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("manifest.json")
    }


def assert_self_contained(page: str):
    """Pictures are inline and nothing is loaded from elsewhere."""
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert page.count("<script") == page.count("<script>") == 1
    assert not re.search(r"url\((?!['\"]?data:|#)", page)


@pytest.fixture(scope="module")
def planar_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("planar")
    pipeline.run(planar_config(), workdir, pipeline.STAGES, [])
    return workdir


def test_mixture_end_to_end(planar_run):
    # Catches: a stage that is not run, methods or seconds left out, the wrong figures under a method's name.
    results = results_lib.read(planar_run / "results.json")
    assert set(results["methods"]) == {"poe", "product", "top1", "top3", *QUERY_ONLY, "real pictures"}
    # The report of the first run cannot say how long it takes itself.
    assert list(results["seconds"])[:4] == list(pipeline.STAGES[:4])
    assert list(read_seconds(planar_run / "seconds.json")) == list(pipeline.STAGES)
    assert len({query["name"] for query in results["queries"]}) == 2
    real = results["methods"]["real pictures"]
    assert real["joint_accuracy"] == 1.0
    assert real["samples"] == 32
    # Guidance may throw some points as far as a held-out cell in six steps, but a trained class is another cell.
    assert results["methods"]["top1"]["joint_accuracy"] < 0.5
    for query in results["queries"]:
        assert query["nfe"] > 0
        assert 0 < query["discovery"]["chains"] >= query["discovery"]["dropped"]
        assert query["source"] == "planar, query part"
    page = (planar_run / "report" / "index.html").read_text()
    assert_self_contained(page)
    assert "The hierarchy of modes" in page
    assert "real pictures, which are the class itself, take no part" in page
    # The grid has one width; the other is the paper's.
    assert re.findall(r"<dt>query_only sigma=(\S+)</dt><dd>[^<]*The best width of the grid", page) == ["0.1"]
    tree = json.loads((planar_run / "discover" / "hierarchy.json").read_text())
    assert [level["t"] for level in tree["levels"]] == list(planar_config().discover.hierarchy)
    sources = {source for level in tree["levels"] for mode in level["modes"] for source in mode["sources"]}
    assert sources == {query["name"] for query in results["queries"]}
    assert not list(planar_run.rglob("*.partial"))


def test_mixture_again_repeats_nothing(planar_run, capsys):
    # Catches: a stage that works although its results are there, seconds that a restored stage overwrites.
    before, seconds = snapshot(planar_run), json.loads((planar_run / "seconds.json").read_text())
    hierarchy = (planar_run / "discover" / "hierarchy.json").stat().st_mtime_ns
    results = results_lib.read(planar_run / "results.json")
    pipeline.run(planar_config(), planar_run, ["discover", "adapt", "evaluate"], [])
    assert snapshot(planar_run) == before
    assert (planar_run / "discover" / "hierarchy.json").stat().st_mtime_ns == hierarchy
    assert re.findall(r"^(\w+): [\d.]+ s$", capsys.readouterr().out, re.MULTILINE) == ["discover", "adapt", "evaluate"]
    again = results_lib.read(planar_run / "results.json")
    assert again["methods"] == results["methods"]
    assert again["queries"] == results["queries"]
    assert json.loads((planar_run / "seconds.json").read_text()) == seconds


def test_a_damaged_or_missing_piece_is_made_again_alone(planar_run, tmp_path):
    # Results of a query follow from its pixels and the seed, not from what was made in the same run.
    workdir = tmp_path / "run"
    shutil.copytree(planar_run, workdir)
    shutil.rmtree(workdir / "discover" / "query_0001")
    (workdir / "discover" / "hierarchy.json").write_text("{}\n")
    before = snapshot(workdir)
    pipeline.run(planar_config(), workdir, ["discover"], [])
    after = snapshot(workdir)
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {"discover/query_0001"}
    trees = [(folder / "discover" / "hierarchy.json").read_text() for folder in (workdir, planar_run)]
    assert trees[0] == trees[1]
    assert_same_checkpoints(workdir / "discover" / "query_0001", planar_run / "discover" / "query_0001")


def test_what_is_advised_leads_on(planar_run, tmp_path):
    """A damaged checkpoint, figures that were edited, and a record of the configuration that is gone."""
    # Catches: a page drawn from any of them, advice that leads nowhere, other figures at the end.
    workdir, stages = tmp_path / "run", ["report"]
    shutil.copytree(planar_run, workdir)
    damaged = workdir / "evaluate" / "query_0000"
    next(path for path in (damaged / "arrays").rglob("*") if path.is_file()).write_bytes(b"")
    results = workdir / "results.json"
    results.write_text(results.read_text().replace('"joint_accuracy": 1.0', '"joint_accuracy": 0.0'))
    (workdir / "config.json").unlink()

    def advised():
        with pytest.raises(UserError) as error:
            pipeline.run(planar_config(), workdir, stages, [])
        return str(error.value)

    assert advised().endswith("or remove discover and adapt and evaluate and results.json from this one.")
    shutil.copy(planar_run / "config.json", workdir)
    assert advised().endswith(
        "results.json is not as this version wrote it: add evaluate to --stages, which measures anew."
    )
    # Catches: figures of another workdir, which carry a checksum of their own.
    results_lib.write(results, results_lib.read(planar_run / "results.json") | {"run_hash": "another"})
    assert advised().endswith(
        "results.json has the results of another run: add evaluate to --stages, which measures anew."
    )
    stages = ["evaluate", "report"]
    assert re.search(r"evaluate/query_0000 is damaged .*: delete it and run again", advised())
    shutil.rmtree(damaged)
    pipeline.run(planar_config(), workdir, stages, [])
    found, expected = (results_lib.read(folder / "results.json") for folder in (workdir, planar_run))
    assert found["methods"] == expected["methods"]
    assert found["queries"] == expected["queries"]


def test_a_finished_workdir_that_cannot_be_written(planar_run, tmp_path, monkeypatch):
    # As on a disk that is mounted for reading. Catches: advice that would do everything anew; a file half written.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        UserError, match=rf"^{planar_run} cannot be written: work on a copy of it that can be written\.$"
    ):
        pipeline.run(planar_config(), planar_run, ["report"], [])
    with pytest.raises(UserError, match="new cannot be written: choose another --workdir"):
        pipeline.run(planar_config(), tmp_path / "new", ["report"], [])


def some(count):
    """As many queries as these tests know of: by what tells one's results from another's."""
    return [types.SimpleNamespace(crc=i, seed=0) for i in range(count)]


def bound(steps=1):
    """What the workdir of a run is bound to."""
    return {"config": {"pretrain": {"result": "last"}, "adapt": {"steps": steps}}, "data": "", "queries": {}}


def test_results_are_their_query_s(tmp_path):
    # Catches: files that change places, or come from another workdir, believed.
    this = types.SimpleNamespace(queries=some(3), path=tmp_path.joinpath, trace_folder=lambda _: None, content=bound())

    def left():
        work = lambda batch: [{"x": np.full(2, float(i))} for i in batch]  # noqa: E731
        return saved_by_query(this, "adapt", True, 3, work)

    left()
    one, other = (tmp_path / "adapt" / f"query_{i:04d}" for i in range(2))
    for path, to in ((one, tmp_path / "away"), (other, one), (tmp_path / "away", other)):
        path.rename(to)
    for i in range(2):
        with pytest.raises(UserError, match=rf"query_000{i} holds the results of another query or .*: delete it"):
            left()[i]
    assert left()[2]["x"].tolist() == [2.0, 2.0]
    one.rename(tmp_path / "away")
    other.rename(one)
    this.content = bound(steps=2)
    with pytest.raises(UserError, match=r"query_0000 holds the results of .* another run: delete it"):
        left()[0]


def test_a_query_is_made_again_in_the_same_company(tmp_path):
    # Side by side with others, its last bits may differ. Catches: batches of what is missing, or writing again what
    # is there.
    batches = []

    def work(batch):
        batches.append(list(batch))
        return [{"x": np.full(2, float(len(batches)))} for _ in batch]

    def values():
        this = types.SimpleNamespace(
            queries=some(5), path=tmp_path.joinpath, trace_folder=lambda _: None, content=bound()
        )
        return [int(result["x"][0]) for result in saved_by_query(this, "adapt", True, 2, work)]

    assert values() == [1, 1, 2, 2, 3]
    assert batches == [[0, 1], [2, 3], [4]]
    for i in (3, 4):
        shutil.rmtree(tmp_path / "adapt" / f"query_{i:04d}")
    batches[:] = [[]] * 3
    assert values() == [1, 1, 2, 4, 5]
    assert batches[3:] == [[2, 3], [4]]


@pytest.mark.parametrize(("at_once", "batches"), [(64, [6, 6, 6, 5]), (4, [4 + 4, 4 + 3, 4, 4])])
def test_few_queries_leave_no_process_idle(tmp_path, monkeypatch, at_once, batches):
    # Catches: one batch of all queries, which is the first process's alone; more at a time than a stage has room for.
    given, queries = [], []

    def work(batch):
        assert len(batch) <= at_once
        queries.extend(batch)
        return [{} for _ in batch]

    this = types.SimpleNamespace(queries=some(23), path=tmp_path.joinpath, trace_folder=lambda _: None, content=bound())
    monkeypatch.setattr(saved, "keep", lambda *_: None)
    monkeypatch.setattr(saved, "meet", lambda paths: None)
    monkeypatch.setattr(saved.hosts, "exchange", lambda said: [said])
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    for index in range(4):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        saved_by_query(this, "adapt", True, at_once, work)
        given.append(len(queries) - sum(given))
    assert given == batches
    assert sorted(queries) == list(range(23))


def test_one_result_is_in_memory_at_a_time(tmp_path, monkeypatch):
    # Catches: reading all queries' results at once, which for thousands of them no host can hold.
    read = []
    kept = saved.kept
    monkeypatch.setattr(saved, "kept", lambda path, of: read.append(path.name) or kept(path, of))
    this = types.SimpleNamespace(
        queries=some(3), path=tmp_path.joinpath, trace_folder=lambda stage: None, content=bound()
    )
    left = saved_by_query(this, "adapt", True, 3, lambda batch: [{"x": np.full(2, i)} for i in (0.0, 1.0, 2.0)])
    assert (len(left), read) == (3, [])
    assert left[1]["x"].tolist() == [1.0, 1.0]
    assert read == ["query_0001"]
    assert [result["x"][0] for result in left] == [0.0, 1.0, 2.0]


def test_what_another_host_has_written_may_be_shown_late(tmp_path, monkeypatch):
    # Catches: not waiting for it, waiting for ever, or waiting where nobody else writes.
    there, late, waits = tmp_path / "there", tmp_path / "late", []
    checkpoints.save(there, {"x": np.zeros(1)})

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            there.rename(late)

    monkeypatch.setattr(saved.hosts, "gather", lambda: [""])
    monkeypatch.setattr(saved.time, "sleep", sleep)
    monkeypatch.setattr(saved.time, "monotonic", lambda: sum(waits))
    saved.meet([there])
    with pytest.raises(UserError, match=r"late was written and is not there: .*that all hosts share"):
        saved.meet([late])
    assert not waits
    monkeypatch.setattr(saved.hosts, "several", lambda: True)
    saved.meet([late])
    assert len(waits) == 3
    with pytest.raises(UserError, match=r"there was written and is not there"):
        saved.meet([late, there])
    assert sum(waits) == pytest.approx(91.5)


def test_the_seconds_of_a_stopped_stage_add_up(tmp_path, monkeypatch):
    # Catches: the last leg alone, a stage that only restores what it had left.
    monkeypatch.setattr(signals, "_asked", None)
    this, now = types.SimpleNamespace(path=tmp_path.joinpath), iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: next(now))
    with pytest.raises(UserError), pipeline.clock(this, "adapt", ["adapt"]):
        raise UserError("stopped")
    assert read_seconds(tmp_path / "seconds.json") == {"adapt": 5.0}
    for _ in range(2):
        with pipeline.clock(this, "adapt", ["adapt"]):
            pass
        assert read_seconds(tmp_path / "seconds.json") == {"adapt": 7.0}


@pytest.mark.parametrize("damage", ["", "\0\0", '{"adapt"', "[]", '{"adapt": {"seconds": -1.0, "finished": true}}'])
def test_damaged_seconds_are_counted_anew(tmp_path, damage, capsys):
    # Catches: a run that a power failure has made useless for its times alone; times that were edited.
    path = tmp_path / "seconds.json"
    path.write_text(damage)
    assert read_seconds(path) == {}
    assert "seconds.json is not as this version wrote it: times are counted anew" in capsys.readouterr().err
    saved.note_seconds(path, "adapt", 3.0, True)
    assert read_seconds(path) == {"adapt": 3.0}


def test_a_device_without_memory_is_no_traceback(tmp_path, monkeypatch):
    # Catches: a stage's own advice lost, other errors of XLA taken for it.
    monkeypatch.setattr(signals, "_asked", None)
    this = types.SimpleNamespace(path=tmp_path.joinpath)
    advice = r"adapt: a device or its host is short of memory: lower config\.adapt\.chunk"
    with pytest.raises(UserError, match=advice), pipeline.clock(this, "adapt", ["adapt"]):
        jax.block_until_ready(jnp.zeros(2**50))
    with pytest.raises(UserError, match=advice), pipeline.clock(this, "adapt", ["adapt"]):
        bytearray(2**60)
    with pytest.raises(jax.errors.JaxRuntimeError), pipeline.clock(this, "adapt", ["adapt"]):
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")


def test_a_stop_between_queries(tmp_path, monkeypatch):
    # Catches: losing what is finished, going on to the next query.
    monkeypatch.setattr(signals, "_asked", None)

    def work(batch):
        signals.ask(signal.SIGTERM)
        return [{"x": np.zeros(2)}]

    this = types.SimpleNamespace(queries=some(2), path=tmp_path.joinpath, trace_folder=lambda _: None, content=bound())
    with pytest.raises(signals.Stopped):
        saved_by_query(this, "adapt", True, 1, work)
    assert [(tmp_path / "adapt" / f"query_{i:04d}").exists() for i in range(2)] == [True, False]


def test_a_stop_that_processes_agree_on(tmp_path, monkeypatch):
    # JAX tells them of a signal when all have come to the same round. Catches: beginning that round all the same.
    monkeypatch.setattr(signals, "_asked", None)
    answers = iter([False, True])
    monkeypatch.setattr(saved.hosts, "stopping", lambda: next(answers) and not signals.ask(signal.SIGTERM))
    worked = []

    def work(batch):
        worked.extend(batch)
        return [{"x": np.zeros(2)}]

    this = types.SimpleNamespace(queries=some(2), path=tmp_path.joinpath, trace_folder=lambda _: None, content=bound())
    with pytest.raises(signals.Stopped):
        saved_by_query(this, "adapt", True, 1, work)
    assert worked == [0]


def test_traces_of_a_stage(tmp_path, monkeypatch):
    # Catches: the folder lost on its way, stages that share one, the first query traced, which compiles.
    told = []

    @contextlib.contextmanager
    def trace(folder):
        told.append(folder)
        yield
        told.append("stop")

    monkeypatch.setattr(jax.profiler, "trace", trace)

    def work(batch):
        told.extend(batch)
        return [{"x": np.zeros(2)}]

    monkeypatch.setattr(pipeline, "run_stages", lambda this, *_: saved_by_query(this, "adapt", True, 1, work))
    pipeline.run(planar_config(), tmp_path / "run", ["adapt"], [], profile=tmp_path / "traces")
    assert told == [0, tmp_path / "traces" / "adapt", 1, "stop"]


@pytest.mark.parametrize(
    ("stages", "missing"),
    [(["adapt"], "discover"), (["discover", "evaluate"], "adapt"), (["discover", "adapt", "report"], "evaluate")],
)
def test_a_stage_without_what_it_needs(tmp_path, planar_run, stages, missing):
    # Catches: doing the missing stage's work unasked.
    shutil.copytree(planar_run, tmp_path / "run", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(UserError, match=rf"{missing}/query_0000 is not there: add {missing} to --stages\.$"):
        pipeline.run(planar_config(), tmp_path / "run", stages, [])


def test_an_unknown_stage(tmp_path):
    with pytest.raises(UserError, match=r"no stage 'raport'; did you mean 'report'\?"):
        pipeline.run(planar_config(), tmp_path / "run", ["raport"], [])


def test_an_exact_score_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match=r"--export writes a network, and config\.network\.kind is 'exact'"):
        pipeline.run(planar_config(), tmp_path / "run", ["adapt"], [], export_to=tmp_path / "out")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Everything from scratch, with a network, and what it said: .ci/run does so too, by the README's commands."""
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    ended = run_command(f"--config={ROOT}/configs/colormnist.py:tiny", f"--workdir={workdir}")
    assert (ended.returncode, ended.stderr) == (0, "")
    return workdir, ended


def again(workdir: pathlib.Path, *arguments: str | pathlib.Path) -> subprocess.CompletedProcess:
    return run_command(f"--config={ROOT}/configs/colormnist.py:tiny", f"--workdir={workdir}", *arguments)


@pytest.mark.slow
def test_tiny_end_to_end(tiny_run):
    workdir, ended = tiny_run
    config = read(config_of("colormnist.py", "tiny"))
    assert re.findall(r"^(\w+): [\d.]+ s$", ended.stdout, re.MULTILINE) == list(pipeline.STAGES)
    results = results_lib.read(workdir / "results.json")
    first = (
        rf"cdisc {cdisc.__version__} on 1 .* device\(s\) of 1 host\(s\), memory .*\d GiB on the host, Python 3\..*, "
        rf"jax \d.*, orbax-checkpoint .*, config {results['config_hash'][:12]}, seed 0, 2 queries"
    )
    assert re.fullmatch(first, ended.stdout.splitlines()[0])
    figures = {"poe", "product", *config.evaluate.methods, "top1", "top3", "composed", "real pictures"}
    assert figures <= set(results["methods"])
    assert set(results["methods"]) - figures == {
        f"query_only sigma={sigma:g}"
        for sigma in (config.evaluate.query_only_sigma, *config.evaluate.query_only_sigmas)
    }
    assert all(entry["samples"] == 2 * config.evaluate.samples for entry in results["methods"].values())
    # The report of the first run cannot say how long it takes itself.
    assert list(results["seconds"])[:4] == list(pipeline.STAGES[:4])
    assert list(read_seconds(workdir / "seconds.json")) == list(pipeline.STAGES)
    left = {path.name for path in workdir.iterdir()}
    assert left == {*pipeline.STAGES, "config.json", "lock", "results.json", "seconds.json"}
    for stage in ("discover", "adapt", "evaluate"):
        assert all((workdir / stage / f"query_{i:04d}").exists() for i in range(2))
    assert checkpoints.steps(workdir / "pretrain" / "train") == [50, 60]
    assert_self_contained((workdir / "report" / "index.html").read_text())


@pytest.mark.slow
def test_tiny_again_and_its_report_alone(tiny_run):
    # Catches: anything trained, sought or drawn a second time.
    workdir, _ = tiny_run
    before, seconds = snapshot(workdir), json.loads((workdir / "seconds.json").read_text())
    page = (workdir / "report" / "index.html").read_bytes()
    (workdir / "report" / "index.html").unlink()
    ended = again(workdir, "--stages=pretrain,discover,report")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert snapshot(workdir) == before
    assert json.loads((workdir / "seconds.json").read_text()) == seconds
    spent = dict(re.findall(r"^(\w+): ([\d.]+) s$", ended.stdout, re.MULTILINE))
    assert list(spent) == ["pretrain", "discover", "report"]
    assert all(float(spent[stage]) < seconds[stage]["seconds"] for stage in ("pretrain", "discover"))
    assert len((workdir / "report" / "index.html").read_bytes()) == pytest.approx(len(page), rel=0.01)


@pytest.mark.slow
def test_tiny_with_pictures_of_ones_own(tiny_run, tmp_path):
    # Catches: figures invented for a picture of which nothing is known, or such a picture taken for a held-out one.
    workdir, _ = tiny_run
    queries = []
    for i in range(2):
        path = tmp_path / f"mine_{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        queries.append(f"--query={path}")
    mine = tmp_path / "run"
    shutil.copytree(workdir / "pretrain", mine / "pretrain")
    shutil.copytree(workdir / "evaluate" / "judge", mine / "evaluate" / "judge")
    ended = again(mine, *queries)
    assert (ended.returncode, ended.stderr) == (0, "")
    results = results_lib.read(mine / "results.json")
    assert [query["name"] for query in results["queries"]] == ["mine_0.png", "mine_1.png"]
    assert "real pictures" not in results["methods"]
    for query in results["queries"]:
        assert query["attributes"] is None
        for figures in query["methods"].values():
            assert figures["joint_accuracy"] is None
            assert figures["precision"] is None
            assert figures["distance_to_query"] > 0.0
    assert "mine_0.png" in (mine / "report" / "index.html").read_text()


def test_processes_must_agree_on_all_that_results_depend_on(monkeypatch, tmp_path):
    # Catches: hosts with other numbers of devices, another configuration or library, other stages or folders.
    told = {}

    def alike(**facts):
        told.update(facts)
        raise UserError("compared")

    monkeypatch.setattr(pipeline.hosts, "require_alike", alike)
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    with pytest.raises(UserError, match="compared"):
        pipeline.run(planar_config(), tmp_path, ["discover", "adapt"], [])
    known = {"devices": 3, "stages": "discover,adapt", "workdir": tmp_path, "jax": jax.__version__}
    assert known.items() <= told.items()
    assert (told["config.seed"], told["config.sampling.num_steps"]) == (0, 6)
