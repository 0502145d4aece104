import errno
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from commands import ONE_BLOCK, ROOT, assert_same_checkpoints, command, run_here
from PIL import Image

from cdisc import signals
from cdisc.app import checkpoints, dry_run, hosts, pipeline
from cdisc.app import config as config_lib
from cdisc.app import workdir as workdir_lib

TINY = f"--config={ROOT}/configs/colormnist.py:tiny"
MINI = (
    TINY,
    *ONE_BLOCK,
    "--config.pretrain.batch_size=2",
    "--config.pretrain.steps=40",
    "--config.pretrain.save_every=10",
    "--config.pretrain.samples_every=15",
    "--stages=pretrain",
)


def refused(*arguments):
    """The sentence with which the command ends."""
    ended = run_here(*arguments)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert [line for line in lines if not line.startswith("cdisc: warning: ")] == lines[-1:]
    assert lines[-1].startswith("cdisc: ")
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --config=FILE and --workdir=DIR"),
        ((TINY,), "give --config=FILE and --workdir=DIR"),
        ((TINY, "spare"), "'spare' is not an option"),
        ((TINY, "--wordir=x"), "Unknown command line flag 'wordir'"),
        (("--config=configs/none.py",), r"there is no config file 'configs/none\.py': give one such as"),
        (("--config=none",), r"or a name of avatars, celeba, colormnist, folder, letters, mixture, pretrained\."),
        (("--config", "colormnist:none"), r"configs/colormnist\.py has no variant 'none'"),
        (("--config", "configs/none.py:tiny"), r"there is no config file 'configs/none\.py'"),
        # Catches: the option after it taken for the file; results in the folder where one happens to be.
        (("--config=", "--workdir=x"), r"there is no config file '': give one"),
        ((TINY, "--workdir="), r"^cdisc: --workdir is empty: give a folder\.$"),
        (("--config=mixture:small",), r"configs/mixture\.py has no variant 'small': use one of even, uneven$"),
        (
            ("--config=pretrained:tiny",),
            r"configs/pretrained\.py has no variants: leave what follows the colon out\.$",
        ),
        ((f"{TINY[:-4]}huge",), "has no variant 'huge': use one of paper, small, study, tiny$"),
        (
            (TINY, "--config.discover.probess=3"),
            r"^cdisc: config\.discover\.probess does not exist; did you mean 'discover\.probes'",
        ),
        ((TINY, "--config.disover.probes=3"), r"^cdisc: config\.disover\.probes does not .* mean 'discover\.probes'"),
        ((TINY, "--config.discover.probes.x=3"), r"^cdisc: config\.discover\.probes\.x does not exist"),
        ((TINY, "--config.discover.probes=abc"), r"--config\.discover\.probes=abc: invalid literal"),
        ((TINY, "--config.discover=3"), r"^cdisc: --config\.discover=3 sets a whole section: set its fields"),
        ((TINY, "--config.data={}"), r"^cdisc: --config\.data={} sets a whole section"),
        (
            (TINY, "--noconfig.network.remote"),
            r"^cdisc: config\.network\.remote does not .* mean 'network\.remat'",
        ),
        (
            (TINY, "--workdir=x", "--config.network.attention_head_dim=2.5"),
            r"^cdisc: config\.network\.attention_head_dim is 2\.5: use a whole number\.$",
        ),
        ((TINY, "--workdir=x", "--config.sampling.clip=wide"), r"config\.sampling\.clip is 'wide': use a number\.$"),
        ((TINY, "--workdir=x", "--config.evaluate.tau_k=nan"), r"config\.evaluate\.tau_k is nan: use a number\.$"),
        ((TINY, "--workdir=x", "--config.seed=-1"), r"config\.seed is -1: use a whole number from 0 to 4294967295\.$"),
    ],
)
def test_command_lines_that_cannot_be_used(arguments, sentence):
    # Catches: letting any of the libraries' errors through, or quoting their tracebacks.
    assert re.search(sentence, refused(*arguments), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def get_config(): return {}", r"mine\.py has no get_config\(\) that returns a configuration\.$"),
        ("import no_such_module", r"mine\.py raised ModuleNotFoundError: No module named 'no_such_module'$"),
        ("def get_config(): return 1 / 0", r"mine\.py raised ZeroDivisionError: division by zero$"),
    ],
)
def test_a_configuration_of_one_s_own_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    assert re.search(sentence, refused(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"), re.MULTILINE)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sampling.clip=None", None),
        ("sampling.clip=3.0", 3.0),
        ("sampling.clip=2", 2.0),
        ("network.attention_head_dim=None", None),
        ("network.attention_head_dim=4", 4),
        ("network.class_embed_type=timestep", "timestep"),
        ("evaluate.tau_k=1", 1.0),
    ],
)
def test_fields_that_may_be_none_take_a_value_and_none(monkeypatch, tmp_path, argument, value):
    # Catches: a field that the command line can only set to what it had the type of.
    given = []
    monkeypatch.setattr(pipeline, "run", lambda config, *_, **__: given.append(config_lib.as_dict(config)))
    assert run_here(TINY, f"--workdir={tmp_path}", f"--config.{argument}").returncode == 0
    section, field = argument.partition("=")[0].split(".")
    assert given[0][section][field] == value
    assert type(given[0][section][field]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--stages=discovr",), "there is no stage 'discovr'; did you mean 'discover'?"),
        (("--stages=,",), "there is no stage '': use pretrain, discover"),
        (("--stages=",), "--stages names no stage"),
        (("--export=",), "--export is empty: give a folder."),
        # Catches: a traceback of the profiler, or a refusal, when the work is done.
        (
            ("--profile=/dev/null",),
            "/dev/null cannot be written ([Errno 17] File exists: '/dev/null'): choose another --pr",
        ),
        (("--export=/dev/null/x",), "/dev/null/x cannot be written ([Errno 20] Not a directory"),
        # Catches: a query counted twice, which makes intervals narrower than they are.
        (("--config.evaluate.seeds=(1,1)",), "config.evaluate.seeds is (1, 1): name each once, from 0 to 4294967295."),
        (
            ("--config.discover.num_experts=9",),
            "config.discover.num_experts is 9, more than the pool holds (capacity 8)",
        ),
        (
            ("--config.discover.timesteps=(100,1001)",),
            "config.discover.timesteps has 1001: the schedule has 1000 timesteps",
        ),
        (
            ("--config.discover.timesteps=(0,)",),
            "config.discover.timesteps is (0,): name at least one timestep, each from 1 to T",
        ),
        (("--config.discover.probes=0",), "config.discover.probes is 0: use whole numbers from 1 on."),
        (
            ("--config.data.name=mnist",),
            "config.data.name has 'mnist', which cdisc does not know; did you mean 'colormnist'?",
        ),
        (
            ("--config.data.held_out=('digit_color=cyan',)",),
            '"digit_color=cyan" names the factor "digit_color", which does not exist: did you mean "digit_colour"?',
        ),
        (
            ("--config.network.kind=mlp",),
            "config.network.kind has 'mlp', which cdisc does not know: use one of unet, exact, diffusers.",
        ),
        (
            ("--config.network.num_class_embeds=120",),
            "config.network.num_class_embeds is 120, but the split trains 120: set it to 121, one row",
        ),
        (
            ("--config.network.up_block_types=('AttenUpBlock2D',)",),
            "config.network.up_block_types has 'AttenUpBlock2D', which cdisc does not have: it has UpBlock2D, AttnU",
        ),
        (
            ("--config.diffusion.prediction_type=noise",),
            "config.diffusion.prediction_type has 'noise', which cdisc does not have: it has",
        ),
        (
            ("--config.network.dtype=float16",),
            "config.network.dtype has 'float16', which cdisc does not know; did you mean 'bfloat16'?",
        ),
        (("--config.network.norm_num_groups=7",), "config.network.norm_num_groups is 7, which does not divide the 16"),
        (("--config.diffusion.num_timesteps=0",), "config.diffusion.num_timesteps is 0: use whole numbers from 1 on"),
        (("--config.diffusion.beta_end=2.0",), "config.diffusion.beta_end is 2.0: a beta lies between 0 and 1"),
        (("--config.discover.tau=0.0",), "config.discover.tau is 0.0: use a positive number."),
        (("--config.pretrain.result=bset",), "config.pretrain.result has 'bset', which cdisc does not know; did you"),
        (
            ("--config.pretrain.loss=mse",),
            "config.pretrain.loss has 'mse', which cdisc does not know: use one of eps, v",
        ),
        (("--config.pretrain.steps=29",), "config.pretrain.steps is 29, fewer than the 10 of warmup_steps"),
        (("--config.sampling.num_steps=0",), "config.sampling.num_steps is 0: use whole numbers from 1 on"),
        (("--config.sampling.num_steps=1001",), "config.sampling.num_steps has 1001: the schedule has 1000 timesteps"),
        (("--config.adapt.chunk=0",), "config.adapt.chunk is 0: use whole numbers from 1 on"),
        (("--config.evaluate.samples=-1",), "config.evaluate.samples is -1: use whole numbers from 1 on"),
        (("--config.evaluate.judge.steps=0",), "config.evaluate.judge.steps is 0: use whole numbers from 1 on"),
        (("--config.evaluate.references=3",), "config.evaluate.references is 3: precision and recall look for 3"),
        (("--config.adapt.levels.lora.batch_size=0",), "config.adapt.levels.lora.batch_size is 0"),
        (
            ("--config.adapt.levels.lora.pool=teachr",),
            "config.adapt.levels.lora.pool has 'teachr', which cdisc does not know; did you mean 'teacher'?",
        ),
        (("--config.evaluate.num_queries=0",), "config.evaluate.num_queries is 0: use whole numbers from 1 on"),
        (
            ("--config.evaluate.methods.lora.level=lara",),
            "config.evaluate.methods.lora.level names no level: 'lara'; did you mean 'lora'?",
        ),
        (("--config.adapt.levels.lora.steps=0",), "config.adapt.levels.lora.steps is 0"),
        (("--config.adapt.levels.lora.candidates=0",), "config.adapt.levels.lora.candidates is 0"),
        (
            ("--config.adapt.levels.lora.candidates=2",),
            "config.adapt.levels.lora.candidates is 2: only an adaptation that starts at 'top1' has some",
        ),
        (
            ("--config.adapt.levels.lora.after=embeding",),
            "config.adapt.levels.lora.after names no level: 'embeding'; did you mean 'embedding'?",
        ),
        (("--config.adapt.levels.lora.space=span",), "config.adapt.levels.lora.space is 'span'"),
        (
            ("--config.adapt.levels.embedding.after=lora", "--config.adapt.levels.embedding.candidates=1"),
            "config.adapt.levels: embedding and lora wait for one another",
        ),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, arguments, sentence):
    # Refused before any work, and before the workdir is bound. Catches: leaving out any one of the checks.
    assert refused(TINY, f"--workdir={tmp_path / 'run'}", *arguments).startswith(f"cdisc: {sentence}")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def picture(tmp_path):
    """A picture of some size, as PNG."""

    def make(width, height):
        path = tmp_path / f"{width}x{height}.png"
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


def test_pictures_that_cannot_be_used(picture, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(32, 32).read_bytes()[:1500])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    os.mkfifo(tmp_path / "pipe")
    for path, sentence in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is a folder"),
        (cut, "cannot be read"),
        (text, "is no picture in a known format"),
        (picture(5, 5), "too small for 32x32"),
        (tmp_path / "pipe", "does not exist or is no file"),
    ):
        error = refused(TINY, workdir, f"--query={path}")
        assert f"{path} " in error
        assert sentence in error
    assert not (tmp_path / "run").exists()
    assert "a query is empty: give the path" in refused(TINY, workdir, "--query=")
    assert "download the picture first" in refused(TINY, workdir, "--query=https://a.org/b.png")
    error = refused(f"--config={ROOT}/configs/mixture.py", workdir, f"--query={picture(32, 32)}")
    assert "data are points: leave --query out" in error


def test_references_that_are_not_there_are_missed_at_once(tmp_path):
    # Catches: hours of work before the evaluation finds out.
    error = refused(TINY, f"--workdir={tmp_path / 'run'}", "--config.evaluate.references=5000")
    assert "5008 different pictures of the digit" in error
    assert not (tmp_path / "run").exists()


def test_celeba_that_is_not_there(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    error = refused(f"--config={ROOT}/configs/celeba.py", workdir)
    assert error.startswith("cdisc: config.data.root names no folder")
    assert "non-commercial research" in error
    assert "--config=configs/avatars.py:small" in error
    assert not (tmp_path / "run").exists()


def test_a_picture_of_another_size_is_resized_with_a_warning(picture, tmp_path):
    error = refused(TINY, f"--workdir={tmp_path / 'run'}", f"--query={picture(64, 64)}", "--stages=report")
    assert re.search(r"^cdisc: warning: .*resized from 64x64 to 32x32 pixels\.$", error, re.MULTILINE)
    assert "add pretrain to --stages" in error


def test_a_workdir_keeps_what_was_made_with_other_fields_and_queries(picture, tmp_path):
    # Catches: a run that does not say what it is to its workdir, or queries without their order.
    workdir, stages = f"--workdir={tmp_path / 'run'}", "--stages=report"
    mine = [f"--query={picture(32, 32)}", f"--query={picture(40, 40)}"]
    assert "add pretrain to --stages" in refused(TINY, workdir, stages, *mine)
    (tmp_path / "run" / "discover").mkdir()
    assert "add pretrain to --stages" in refused(TINY, workdir, stages, *mine)
    for changed in ([*mine, "--config.seed=1"], mine[::-1], mine[:1], []):
        error = refused(TINY, workdir, stages, *changed)
        assert "was made otherwise: " in error
        assert "Choose another --workdir, or remove discover from this one." in error
    assert "config.seed was 0 and is 1" in refused(TINY, workdir, stages, *mine, "--config.seed=1")
    more = [*mine, f"--query={picture(48, 48)}", "--config.evaluate.samples=9", "--config.sampling.batch=3"]
    assert "add pretrain to --stages" in refused(TINY, workdir, stages, *more)


def test_a_workdir_that_is_no_folder(tmp_path, monkeypatch):
    assert refused(TINY, "--workdir=gs://bucket/run").startswith("cdisc: --workdir is 'gs://bucket/run', and only")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/run/pretrain" in refused(TINY, "--workdir=~/run", "--stages=report")
    shutil.copy(ROOT / "configs" / "colormnist.py", tmp_path / "mine.py")
    assert f"{tmp_path}/run/pretrain" in refused("--config=~/mine.py:tiny", "--workdir=~/run", "--stages=report")


def test_a_process_without_a_coordinator(tmp_path):
    # Catches: as many runs as there are processes, each of which does everything.
    error = refused(TINY, f"--workdir={tmp_path / 'run'}", "--num_processes=2", "--process_id=1")
    assert "say nothing without --coordinator=HOST:PORT" in error


def test_an_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another --workdir" in refused(TINY, f"--workdir={tmp_path / 'file' / 'run'}")


def test_a_workdir_in_use(tmp_path):
    # Catches: a run that does not take the lock, or takes it after it has written its configuration.
    with workdir_lib.locked(tmp_path):
        error = refused(TINY, f"--workdir={tmp_path}", "--stages=report")
        assert f"{tmp_path} is in use by process {os.getpid()} on " in error
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert "add pretrain to --stages" in refused(TINY, f"--workdir={tmp_path}", "--stages=report")


def test_a_disk_that_fills_up_anywhere(tmp_path, monkeypatch):
    # Catches: letting OSError through, and hiding mistakes in the code behind the same sentence.
    def fail(number, file):
        def run(*args, **options):
            raise OSError(number, os.strerror(number), str(file))

        return run

    monkeypatch.setattr(pipeline, "run", fail(errno.ENOSPC, "results.json"))
    assert "No space left on device: 'results.json': make room" in refused(TINY, f"--workdir={tmp_path}")
    monkeypatch.setattr(pipeline, "run", fail(errno.ENOENT, tmp_path / "other.json"))
    with pytest.raises(FileNotFoundError):
        run_here(TINY, f"--workdir={tmp_path / 'run'}")
    # A workdir that is removed while the run goes on, and network folders that do not answer any more.
    monkeypatch.setattr(pipeline, "run", fail(errno.ENOENT, tmp_path / "run" / "metrics.jsonl"))
    assert f"{tmp_path}/run/metrics.jsonl': make room, bring" in refused(TINY, f"--workdir={tmp_path / 'run'}")
    for number in (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT):
        monkeypatch.setattr(pipeline, "run", fail(number, "results.json"))
        assert f"{os.strerror(number)}: 'results.json': make room, bring" in refused(TINY, f"--workdir={tmp_path}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of an uninterrupted training."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    ended = run_here(*MINI, f"--workdir={workdir}")
    assert (ended.returncode, ended.stderr) == (0, "")
    return workdir


def test_checkpoints_that_cannot_be_used(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    params = workdir / "pretrain" / "params"
    next(path for path in (params / "arrays").rglob("*") if path.is_file()).write_bytes(b"")
    assert re.search(rf"{params} is damaged \(.*\): delete it", refused(*MINI, f"--workdir={workdir}"))

    other = tmp_path / "other"
    (other / "pretrain").mkdir(parents=True)
    shutil.copytree(trained / "pretrain" / "params", other / "pretrain" / "params")
    # Catches: results of an unknown configuration taken for this one's.
    error = refused(TINY, f"--workdir={other}", "--stages=discover")
    assert f"{other}/config.json, which says how {other} was made, is missing" in error
    assert "choose another --workdir, or remove pretrain from this one." in error


def test_a_loss_that_is_not_a_number(tmp_path):
    # The rate warms up from zero: the second step is the first that moves, and the third meets what it did.
    workdir = tmp_path / "run"
    absurd = ("--config.pretrain.learning_rate=1e30", "--config.pretrain.steps=30", "--config.pretrain.save_every=2")
    ended = run_here(*MINI, *absurd, f"--workdir={workdir}")
    assert ended.returncode == 2
    assert ended.stderr == (
        "cdisc: pretrain: the loss or its gradient is not finite at step 3; the checkpoint of step 2 is kept: lower "
        "config.pretrain.learning_rate and choose another --workdir.\n"
    )
    assert [path.name for path in (workdir / "pretrain" / "train").iterdir()] == ["step_00000002"]


def test_ctrl_c_and_the_same_command_again(trained, tmp_path):
    # Catches: randomness that does not follow from the step, state left out of the checkpoint, a traceback.
    workdir = tmp_path / "run"
    arguments = (*MINI, f"--workdir={workdir}")
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = workdir / "pretrain" / "train" / "step_00000010"
    for _ in itertools.takewhile(lambda _: process.poll() is None and not first.exists(), itertools.count()):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err == "cdisc: stopped by SIGINT; the same command goes on from what was finished.\n"
    assert not (workdir / "pretrain" / "params").exists()

    again = run_here(*arguments)
    assert (again.returncode, again.stderr) == (0, "")
    goes_on = re.search(r"^pretrain: goes on at step (\d+) of 40$", again.stdout, re.MULTILINE)
    assert goes_on is not None
    assert 10 <= int(goes_on[1]) < 40
    assert_same_training(workdir, trained)


def test_a_signal_in_the_last_moment(tmp_path, monkeypatch):
    # Catches: taking it for nothing, so that a script goes on to its next command.
    monkeypatch.setattr(signals, "_asked", None)
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: signals.ask(signal.SIGINT))
    ended = run_here(TINY, f"--workdir={tmp_path}")
    assert ended.returncode == 2
    assert ended.stderr == "cdisc: stopped by SIGINT; the same command goes on from what was finished.\n"


def test_how_one_of_several_processes_ends(tmp_path, monkeypatch):
    # Catches: a traceback of which the others are not told, for whose end Python then waits; a signal that comes when
    # all have agreed that the run is done, and that one of them alone obeys.
    def run(*_, **__):
        signals.ask(signal.SIGTERM)
        if failing:
            raise IndexError("of a mistake")

    left = []
    monkeypatch.setattr(signals, "_asked", None)
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(hosts, "connect", lambda *_: None)
    monkeypatch.setattr(hosts, "leave", left.append)
    for failing in (True, False):
        err = run_here(TINY, f"--workdir={tmp_path}", "--coordinator=here:1").stderr
        assert err.endswith("IndexError: of a mistake\n" if failing else "")
    assert left == [1, 0]


def test_where_traces_go(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(pipeline, "run", lambda *arguments, export_to, profile: given.append(profile))
    for options, folder in (((), None), (("--profile=here",), pathlib.Path("here"))):
        assert run_here(TINY, f"--workdir={tmp_path}", *options).returncode == 0
        assert given.pop() == folder


def assert_same_training(workdir, unbroken):
    metrics, expected = ((folder / "pretrain" / "metrics.jsonl").read_text() for folder in (workdir, unbroken))
    assert metrics == expected
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == list(range(1, 41))
    samples, expected = (
        {path.name: path.read_bytes() for path in (folder / "pretrain" / "samples").iterdir()}
        for folder in (workdir, unbroken)
    )
    assert samples == expected
    assert sorted(samples) == [f"step_{step:08d}.png" for step in (15, 30, 40)]
    assert_same_checkpoints(workdir / "pretrain" / "params", unbroken / "pretrain" / "params")


def test_stopped_and_killed_and_damaged(trained, tmp_path, monkeypatch):
    # Stopped by SIGTERM at step 17, then killed at 37, then its newest checkpoint is damaged. Catches: a stop that
    # does not save, or saves and goes on; metrics of a step twice or not at all.
    workdir = tmp_path / "run"
    arguments = (*MINI, f"--workdir={workdir}")
    folder = workdir / "pretrain" / "train"

    class KilledError(Exception):
        pass

    def kill():
        with (workdir / "pretrain" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 31, "loss": 1.0}\n{"ste')
        raise KilledError

    def after(steps, what):
        """The loop looks for a signal once a step."""
        looks = itertools.count(1)
        monkeypatch.setattr(signals, "_asked", None)
        monkeypatch.setattr(signals, "asked", lambda: (next(looks) == steps and what()) or signals._asked is not None)

    after(17, lambda: signals.ask(signal.SIGTERM))
    stopped = run_here(*arguments)
    assert stopped.returncode == 143
    assert stopped.stderr == "cdisc: stopped by SIGTERM; the same command goes on from what was finished.\n"
    assert checkpoints.steps(folder) == [10, 17]
    after(20, kill)
    with pytest.raises(KilledError):
        run_here(*arguments)
    assert checkpoints.steps(folder) == [20, 30]
    monkeypatch.undo()
    (folder / "step_00000030" / "manifest.json").write_text("{")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (workdir / f"seconds.json.{socket.gethostname()}.{dead.pid}.partial").touch()
    ended = run_here(*arguments)
    assert ended.returncode == 0
    assert not list(workdir.rglob("*.partial"))  # what a kill has left half written
    assert "goes on at step 20 of 40" in ended.stdout
    assert ended.stderr == (
        f"cdisc: warning: {folder / 'step_00000030'} holds no finished checkpoint: it is removed, and step_00000020 is "
        "tried in its place.\n"
    )
    assert_same_training(workdir, trained)


def test_a_dry_run_needs_no_workdir_and_makes_none(monkeypatch, tmp_path):
    says = lambda config, devices: f"{config.network.sample_size} pixels, {devices} chips"  # noqa: E731
    monkeypatch.setattr(dry_run, "report", says)
    monkeypatch.setattr(pipeline, "run", None)
    monkeypatch.chdir(tmp_path)
    for devices, arguments in ((4, ("--device_count=4", "--workdir=here")), (1, ())):
        ended = run_here(TINY, "--dry_run", *arguments)
        assert (ended.returncode, ended.stdout) == (0, f"32 pixels, {devices} chips\n")
    assert not list(tmp_path.iterdir())
