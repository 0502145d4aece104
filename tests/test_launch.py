"""The launchers, with the clusters' own commands replaced by ones that keep what they are given."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import kubernetes_validate
import pytest
import yaml
from commands import ROOT, marked
from jax._src.clusters.k8s_cluster import K8sCluster

from cdisc import signals

LAUNCH = ROOT / "launch"
AWKWARD = [
    "--config=configs/my config.py:small",
    "--workdir=runs/one of $HOME's",
    "--query=a  b.png",
    "--config.data.root=$HOME/*'\"",
]


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    assert shellcheck is not None, "pip install '.[test]' brings it"
    scripts = [*LAUNCH.glob("*.sh"), *(ROOT / "benchmarks").glob("*.sh"), ROOT / ".ci" / "run"]
    ended = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def put(path: pathlib.Path, script: str) -> None:
    """A command, as a script for this Python or for bash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


def kept(path: pathlib.Path) -> list:
    """What a fake command has kept, call by call."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


PYTHON = f"#!{sys.executable} -IS\nimport json, os, pathlib, shutil, signal, subprocess, sys, time\n"
KEEP = 'with open({log!r}, "a") as file: file.write(json.dumps(sys.argv[1:]) + "\\n")\n'

# A pod of one worker whose home is a folder here. What `uv` would install is a Python that keeps what it is given.
GCLOUD = """
*_, verb = words = [word for word in sys.argv[1:] if not word.startswith("-")][:4]
if verb == "delete":
    shutil.rmtree(home)  # fails where nothing was created
if verb == os.environ.get("FAILS"):
    sys.exit(1)
if verb == "create":
    os.makedirs(home)
if verb == "scp":
    options = {word for word in sys.argv[1:] if word.startswith("-")}
    source, target = [word for word in sys.argv[5:] if not word.startswith("-")]
    if "--worker=0" in options and os.environ.get("FAILS") == "fetch":
        sys.exit(1)
    source, target = [home + path.partition(":")[2] if ":" in path else path for path in (source, target)]
    subprocess.run(["cp", "-r", source, target], check=True)
if verb == "ssh":
    (command,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--command=")]
    if "uv" in command and os.environ.get("FAILS") == "install":
        sys.exit(3)
    if "uv" in command:
        python = pathlib.Path(home, "cdisc", ".venv", "bin", "python")
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
    elif "sudo" not in command:
        sys.exit(subprocess.run(["bash", "-c", command], cwd=home, env={"HOME": home, **os.environ}).returncode)
"""
REMOTE = """
words = iter("=".join(sys.argv).split("--workdir=")[-1].split("=--"))
workdir = next(words)
os.makedirs(workdir, exist_ok=True)
pathlib.Path(workdir, "results.json").write_text("{}")
sys.exit(7 if os.environ.get("FAILS") == "run" else 0)
"""


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Runs tpu_pod.sh in a repository of a few files; what gcloud and the workers were given is kept beside it."""
    repository = tmp_path / "repository"
    put(repository / "cdisc" / "a file.py", "")
    put(repository / ".gitignore", "/runs/\n")
    put(repository / "runs" / "data.zip", "")
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    remote = PYTHON + KEEP.format(log=str(tmp_path / "workers")) + REMOTE
    home = f"home, PYTHON = {str(tmp_path / 'worker') + '/'!r}, {remote!r}\n"
    put(tmp_path / "bin" / "gcloud", PYTHON + KEEP.format(log=str(tmp_path / "gcloud.calls")) + home + GCLOUD)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(*arguments, fails=""):
        command = [LAUNCH / "tpu_pod.sh", "--tpu_type=v4-8", "--tpu_zone=here", *arguments]
        return subprocess.run(
            command, cwd=repository, env=os.environ | {"FAILS": fails}, capture_output=True, text=True, timeout=60
        )

    return types.SimpleNamespace(run=run, root=tmp_path, repository=repository)


def verbs(calls):
    return " ".join(call[3] for call in calls)


def test_a_dry_run_prints_every_command_and_runs_none(pod):
    # The oracle is what a run prints and what gcloud is then given. Catches: a command that is not printed, or is run.
    (pod.repository / "runs" / "one of $HOME's").mkdir()
    options = ("--tpu_spot", "--tpu_version=v5", *AWKWARD)
    dry = pod.run("--dry_run", *options)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert {path.name for path in pod.root.iterdir()} == {"bin", "repository"}
    real = pod.run(*options)
    assert (real.returncode, real.stderr) == (0, "")
    name = re.compile(r"cdisc-[0-9]{8}-[0-9]{6}-[0-9]+")
    assert name.sub("POD", dry.stdout) == name.sub("POD", real.stdout)
    assert len(set(name.findall(dry.stdout + real.stdout))) == 2
    printed = [shlex.split(line) for line in real.stdout.splitlines()]
    assert [words[0] for words in printed if words[0] != "gcloud"] == ["bash", "tar", "rm"]
    calls = kept(pod.root / "gcloud.calls")
    assert [words[1:] for words in printed if words[0] == "gcloud"] == calls
    assert verbs(calls) == "create scp ssh ssh ssh ssh scp delete"
    assert calls[0][4:5] + calls[0][6:] == ["--spot", "--zone=here", "--accelerator-type=v4-8", "--version=v5"]
    assert all("--zone=here" in call for call in calls)
    assert all("--worker=all" in call for call in calls[1:5])


def test_arguments_reach_the_command_unharmed(pod):
    # Catches: a shell on the way that splits, expands or unquotes them; an option of the script's own passed on.
    ended = pod.run("--tpu_share=10.0.0.2:/share", *AWKWARD)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert kept(pod.root / "workers") == [["-m", "cdisc.main", "--distributed", *AWKWARD]]
    calls = kept(pod.root / "gcloud.calls")
    assert verbs(calls) == "create scp ssh ssh ssh ssh ssh scp delete"
    assert any("sudo mount 10.0.0.2:/share cdisc/runs" in word for word in calls[3])
    assert (pod.repository / "runs" / "one of $HOME's" / "results.json").read_text() == "{}"
    assert not list(pod.root.glob("*.tar.gz"))


def test_the_workers_get_what_git_does_not_ignore(pod):
    # Catches: a --workdir in two words, which absl takes, overlooked; the data under runs/ sent from here.
    assert pod.run("--keep", "--workdir", "runs/one").returncode == 0
    assert kept(pod.root / "workers") == [["-m", "cdisc.main", "--distributed", "--workdir", "runs/one"]]
    files = {path.relative_to(pod.root / "worker") for path in (pod.root / "worker" / "cdisc").rglob("*.*")}
    assert {str(path) for path in files} - {"cdisc/.venv"} == {
        "cdisc/.gitignore",
        "cdisc/cdisc/a file.py",
        "cdisc/runs/one/results.json",
    }


@pytest.mark.parametrize(
    ("fails", "options", "code", "last"),
    [
        ("run", (), 7, "scp delete"),
        ("run", ("--keep",), 7, "ssh scp"),
        ("create", (), 1, "create ssh delete"),
        ("scp", (), 1, "create scp ssh delete"),
        ("install", (), 3, "ssh ssh ssh delete"),
        # What the run has left is only there.
        ("fetch", (), 1, "ssh scp"),
        ("delete", (), 0, "scp delete"),
        ("here", ("--workdir=runs/data.zip/one",), 1, "ssh scp"),
    ],
)
def test_a_pod_is_deleted_however_its_run_ends(pod, fails, options, code, last):
    # Catches: a pod left behind, or deleted against the person's word or with the only copy of the results.
    ended = pod.run(*AWKWARD, *options, fails=fails)
    assert ended.returncode == code
    assert verbs(kept(pod.root / "gcloud.calls")).endswith(last)
    left = "the pod costs money until it is deleted by: gcloud compute tpus tpu-vm delete cdisc-"
    assert (left in ended.stderr) == (fails in ("create", "delete") or not last.endswith("delete"))
    assert (pod.repository / "runs" / "one of $HOME's" / "results.json").exists() == (fails in ("run", "delete"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--workdir=runs/one", "--tpu_zone="), "give --tpu_type and --tpu_zone."),
        (("--workdir=/tmp/one",), "give --workdir=runs/NAME"),
        (("--config=configs/mixture.py",), "give --workdir=runs/NAME"),
        (("--workdir=runs/one", "--tpu_name=mine"), "there is no option --tpu_name=mine"),
        (("--workdir=runs/one", "--tpu_type=v4-16"), "a v4-16 is several workers: give --tpu_share=HOST:PATH"),
    ],
)
def test_what_the_pod_script_refuses(pod, arguments, sentence):
    ended = pod.run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"tpu_pod.sh: {sentence}")
    assert not (pod.root / "gcloud.calls").exists()


# As srun does: a process for each node, killed when it gets SIGTERM itself; it ends with their highest code.
SRUN = """
options = [word for word in sys.argv[1:4] if word.startswith("--")]
nodes = [subprocess.Popen(sys.argv[1 + len(options):]) for _ in range(int(os.environ["SLURM_JOB_NUM_NODES"]))]
pathlib.Path("nodes").write_text(" ".join(str(node.pid) for node in nodes))
def kill(*_):
    for node in nodes:
        node.kill()
signal.signal(signal.SIGTERM, kill)
sys.exit(max(code if code >= 0 else 128 - code for code in [node.wait() for node in nodes]))
"""
SCANCEL = """
for pid in pathlib.Path("nodes").read_text().split():
    os.kill(int(pid), signal.SIGTERM)
"""
NODE = """
def stop(*_):
    if "HANGS" in os.environ:
        return
    pathlib.Path(f"saved.{os.getpid()}").touch()
    sys.exit(int(os.environ["STOPPED"]))
signal.signal(signal.SIGTERM, stop)
pathlib.Path(f"started.{os.getpid()}").write_text(os.environ["SRUN_CPUS_PER_TASK"])
if "ENDS" in os.environ:
    sys.exit(int(os.environ["ENDS"]))
time.sleep(60)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Starts slurm.sh as a job of so many nodes."""
    for name, script in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", "")):
        put(tmp_path / "bin" / name, PYTHON + KEEP.format(log=str(tmp_path / name)) + script)
    put(tmp_path / ".venv" / "bin" / "python", PYTHON + KEEP.format(log=str(tmp_path / "python")) + NODE)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def start(nodes, *arguments, **environment):
        environment |= {"SLURM_JOB_ID": "42", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CPUS_PER_TASK": "8"}
        script = [LAUNCH / "slurm.sh", *arguments]
        return subprocess.Popen(
            script,
            cwd=tmp_path,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.mark.parametrize(("nodes", "flags"), [(1, []), (3, ["--distributed"])])
@pytest.mark.parametrize("code", [0, 2])
def test_a_job_ends_as_its_run(slurm, tmp_path, nodes, flags, code):
    # Catches: one process for all nodes; processes that do not know of one another, or have one core each.
    job = slurm(nodes, *AWKWARD, ENDS=str(code), SLURM_NTASKS_PER_NODE="1")
    assert job.communicate(timeout=60)[1] == ""
    assert job.returncode == code
    assert kept(tmp_path / "python") == [["-m", "cdisc.main", *flags, *AWKWARD]] * nodes
    assert [path.read_text() for path in tmp_path.glob("started.*")] == ["8"] * nodes
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize(("stopped", "again"), [(143, [["requeue", "42"]]), (0, [])])
def test_a_job_saves_and_queues_itself_again_before_its_limit(slurm, tmp_path, stopped, again):
    # Catches: SIGTERM given to srun, which kills; queueing what has just ended; not waiting for the processes.
    job = slurm(2, *AWKWARD, STOPPED=str(stopped))
    while len(list(tmp_path.glob("started.*"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.communicate(timeout=60)[1] == ""
    assert job.returncode == 0
    assert kept(tmp_path / "scancel") == [["--signal=TERM", "42"]]
    assert len(list(tmp_path.glob("saved.*"))) == 2
    assert kept(tmp_path / "scontrol") == again


def test_a_job_queues_itself_again_though_its_run_does_not_end(slurm, tmp_path):
    # Catches: waiting until Slurm kills the script; for longer than the time that was asked for.
    log, shorter = tmp_path / "timeout", "os.execv('/usr/bin/timeout', ['timeout', '1', *sys.argv[2:]])\n"
    put(tmp_path / "bin" / "timeout", PYTHON + KEEP.format(log=str(log)) + shorter)
    job = slurm(2, *AWKWARD, HANGS="1")
    while len(list(tmp_path.glob("started.*"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    job.stderr.close()
    os.killpg(job.pid, signal.SIGKILL)
    assert kept(tmp_path / "scontrol") == [["requeue", "42"]]
    (asked,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    assert int(kept(log)[0][0]) < int(asked)


def test_a_job_of_many_processes_a_node(slurm, tmp_path):
    # Catches: processes that all use all GPUs of their node, or that do not know of one another.
    job = slurm(1, *AWKWARD, SLURM_NTASKS_PER_NODE="8")
    assert job.communicate(timeout=60)[1].startswith("slurm.sh: one process has all GPUs of its node: leave")
    assert job.returncode == 2
    assert not (tmp_path / "srun").exists()


def test_a_job_that_slurm_has_not_started(slurm):
    job = slurm("", *AWKWARD)
    assert "SLURM_JOB_NUM_NODES: submit this script with sbatch" in job.communicate(timeout=60)[1]
    assert job.returncode != 0


# In the place of the command: a process that ends as its environment says, or when it is told to.
PROCESS = """
import os, pathlib, signal, sys, time
me = sys.argv[-1].removeprefix("--process_id=")
def stop(number, frame):
    with open(f"stopped.{me}", "a") as file:
        file.write(f"{number} ")
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
pathlib.Path(f"started.{me}").write_text(str(os.getpid()))
ends = os.environ.get(f"ENDS_{me}")
while ends is None:
    time.sleep(0.05)
time.sleep(int(me) * 0.3)
print(f"process {me} says why", file=sys.stderr, flush=True)
if int(ends) < 0:
    os.kill(os.getpid(), -int(ends))
sys.exit(int(ends))
"""


@pytest.fixture
def local(tmp_path):
    """Starts local.py for two processes."""
    put(tmp_path / "cdisc" / "__init__.py", "")
    put(tmp_path / "cdisc" / "main.py", PROCESS)

    def start(**environment):
        script = [sys.executable, LAUNCH / "local.py", "--", *AWKWARD]
        environment = os.environ | environment
        jobs.append(subprocess.Popen(script, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return jobs[-1]

    jobs: list[subprocess.Popen] = []
    yield start
    for job in jobs:
        job.stderr.close()


DIED = (
    "local.py: process 0 was ended by SIGKILL, and the others end with it; the same command goes on from what was "
    "finished."
)


@pytest.mark.parametrize(
    ("first", "second", "code", "said"),
    [
        ("0", "0", 0, ["process 0 says why"]),
        ("0", "3", 3, ["process 0 says why", "process 1 says why"]),
        ("2", "75", 2, ["process 0 says why"]),
        ("-9", "0", os.EX_TEMPFAIL, ["process 0 says why", DIED]),
    ],
)
def test_local_processes_that_end(local, first, second, code, said):
    # Catches: the code or the words of another process than the one that failed first; a death without a word.
    job = local(ENDS_0=first, ENDS_1=second)
    assert job.communicate(timeout=60)[1].splitlines() == said
    assert job.returncode == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopping_local_processes(local, tmp_path, number):
    # Catches: processes that outlive the launcher, or that hear of one Ctrl-C twice.
    job = local()
    while len(list(tmp_path.glob("started.*"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(number)
    assert job.communicate(timeout=60)[1] == ""
    assert job.returncode == 128 + number
    assert [(tmp_path / f"stopped.{i}").read_text() for i in range(2)] == [f"{int(number)} "] * 2


def test_local_processes_do_not_outlive_a_launcher_that_is_killed(local, tmp_path):
    # Catches: processes that go on unseen, in groups of their own, when the launcher cannot pass its signal on.
    job = local()
    while len(pids := [path.read_text() for path in tmp_path.glob("started.*") if path.read_text()]) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait(timeout=60)
    until = time.monotonic() + 30.0
    while any(map(alive, pids)):
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(pid: str) -> bool:
    """Whether the process runs; one that nobody has asked for its end does not."""
    try:
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def manifest():
    """The manifest's objects by kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_manifest_is_what_kubernetes_knows(manifest, version):
    # Catches: any field that is misspelt, missing, or in another's place.
    assert list(manifest) == ["Service", "ServiceAccount", "Role", "RoleBinding", "Job"]
    for found in manifest.values():
        kubernetes_validate.validate(found, version, strict=True)


def test_jax_finds_the_pods_of_the_manifest(manifest, monkeypatch):
    # What JAX itself asks of the cluster, answered from the manifest. Catches: a Job without labels, whose label JAX
    # looks for, or without the subdomain; a Service with another name or for other pods; a Role that may not ask.
    def answer(value):
        if isinstance(value, dict):
            names = {re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower(): answer(part) for name, part in value.items()}
            return types.SimpleNamespace(**names)
        return value

    job, service = manifest["Job"], manifest["Service"]
    found = answer(job)
    found.metadata.labels = job["metadata"]["labels"]
    template = job["spec"]["template"]
    pod = answer(template)
    pod.spec.subdomain = template["spec"].get("subdomain")
    monkeypatch.setattr(K8sCluster, "_controller", lambda: types.SimpleNamespace(kind="Job"))
    monkeypatch.setattr(K8sCluster, "_job", lambda: found)
    monkeypatch.setattr(K8sCluster, "_pod", lambda: pod)
    monkeypatch.setattr(K8sCluster, "_headless_svc", lambda: None)
    # Given, so that JAX does not wait for it, which it does not do for long.
    (given,) = template["spec"]["containers"][0]["env"]
    assert given == {"name": "JAX_COORDINATOR_ADDRESS", "value": K8sCluster.get_coordinator_address(None, None)}
    assert K8sCluster.get_process_count() == job["spec"]["completions"] == 4
    # A pod's name in DNS is HOSTNAME.SUBDOMAIN if a headless service of that name selects it.
    assert service["metadata"]["name"] == template["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}  # the Job's own label of its pods
    assert job["spec"]["completionMode"] == "Indexed"
    rights = {
        (group, what, verb)
        for rule in manifest["Role"]["rules"]
        for group in rule["apiGroups"]
        for what in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {("", "pods", "list"), ("", "services", "list"), ("batch", "jobs", "get")}
    account = manifest["ServiceAccount"]["metadata"]["name"]
    assert template["spec"]["serviceAccountName"] == account
    assert manifest["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert manifest["RoleBinding"]["roleRef"]["name"] == manifest["Role"]["metadata"]["name"]


def test_which_pods_are_replaced_without_counting(manifest):
    # Not a fault of their own: the code of `cdisc.signals` for SIGTERM, and those for the death of another, of which
    # the network may be the first to tell, or JAX, which aborts.
    rules = manifest["Job"]["spec"]["podFailurePolicy"]["rules"]
    codes = [tuple(rule["onExitCodes"]["values"]) for rule in rules if "onExitCodes" in rule]
    assert codes == [(os.EX_TEMPFAIL, 128 + signal.SIGABRT, signals.CODES[signal.SIGTERM])]
    assert {rule["action"] for rule in rules} == {"Ignore"}
    # And not for ever: a pod may also abort by itself.
    assert manifest["Job"]["spec"]["activeDeadlineSeconds"] > 0


def test_the_readme_s_commands(tmp_path, monkeypatch):
    # Catches: an option that the pod script does not know, a file that is not there.
    for name in ("sbatch", "gcloud", "kubectl"):
        put(tmp_path / "bin" / name, PYTHON + KEEP.format(log=str(tmp_path / name)))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    script = marked("launch").replace("launch/tpu_pod.sh", "launch/tpu_pod.sh --dry_run")
    ended = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (tmp_path / "gcloud").exists()
    (batch,), (kubernetes,) = kept(tmp_path / "sbatch"), kept(tmp_path / "kubectl")
    for word in [*batch, *kubernetes, *shlex.split(marked("launch"), comments=True)]:
        file = word.removeprefix("--config=")
        if file.startswith(("launch/", "configs/")):
            assert (ROOT / file.partition(":")[0]).is_file()
