"""What a run makes of damaged files, and whether what it says then leads on.

    JAX_PLATFORMS=cpu python -m benchmarks.faults --workdir=runs/faults --count=240

A run on points and the training of a network, both of next to nothing, are made once. Copies of their workdirs,
finished and half finished, each get one fault in one of their files: cut, zeroed, a bit flipped, "[]" in its place, no
UTF-8, gone. Then the run is asked for its report, or to go on; what it advises is done; and so on until it ends well.
It is silently wrong if it does so with another page, or with other arrays, metrics or modes, than without the fault,
and a dead end if a sentence advises nothing, or five of them do not lead to the end. Each kind of file gets each fault
before another of its kind gets one.

Before, and without a run, every fault of every file of every checkpoint and record is given to what reads it, which
must tell it or read what was written.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import random
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags

from cdisc import console, runtime, storage

_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for all runs; it must not exist.")
_COUNT = flags.DEFINE_integer("count", 240, "How many faults.")
_SEED = flags.DEFINE_integer("seed", 0, "Of files and faults.")

POINTS = {
    "discover.timesteps": (100, 300),
    "discover.starts_per_t": 4,
    "discover.max_steps": 12,
    "discover.capacity": 16,
    "discover.hierarchy": (100, 300),
    "sampling.num_steps": 4,
    "adapt.class_draws": 8,
    "evaluate.num_queries": 2,
    "evaluate.samples": 8,
    "evaluate.references": 8,
    "evaluate.query_only_sigmas": (),
}
TRAINING = {
    "network.block_out_channels": (8,),
    "network.down_block_types": ("DownBlock2D",),
    "network.up_block_types": ("UpBlock2D",),
    "network.add_attention": False,
    "network.patch_size": 8,
    "pretrain.batch_size": 2,
    "pretrain.steps": 6,
    "pretrain.warmup_steps": 1,
    "pretrain.decay_steps": 1,
    "pretrain.save_every": 2,
    "pretrain.samples_every": 3,
    "pretrain.result": "best",
    "evaluate.num_queries": 1,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A workdir to be damaged.

    Attributes:
      whole: the name of the whole run that it is a copy of.
      missing: what it has not made yet.
      asked: the stages that are asked for.
    """

    whole: str
    missing: tuple[str, ...]
    asked: tuple[str, ...]


CASES = {
    "points": Case("points", (), ("report",)),
    "half of points": Case(
        "points",
        ("discover/query_0001", "discover/hier*", "adapt/query_0001*", "evaluate", "results.json", "report"),
        ("discover", "adapt"),
    ),
    "training": Case("training", (), ("pretrain",)),
    "half of training": Case("training", ("pretrain/params", "pretrain/train/step_*6"), ("pretrain",)),
}

FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut": lambda content, _: content[: len(content) // 2],
    "zeroed": lambda content, _: bytes(len(content)),
    "a bit flipped": lambda content, at: _flip(bytearray(content), at.randrange(8 * len(content))),
    "[]": lambda *_: b"[]",
    "no UTF-8": lambda content, _: b"\xff" + content[1:],
    "gone": lambda *_: None,
}


def _flip(content: bytearray, bit: int) -> bytes:
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


@dataclasses.dataclass
class Ended:
    """How a run ended: with a sentence, with a traceback, or well (""); and all that it said besides."""

    sentence: str
    said: str


def main(argv: list[str]) -> int:
    """Prints a line for each fault that went wrong and a summary; returns 1 if one did."""
    import jax

    from cdisc.app import config as config_lib
    from cdisc.app import pipeline
    from cdisc.configs import colormnist, mixture

    trees = {"points": mixture.get_config(), "training": colormnist.get_config("tiny")}
    for tree, changes in zip(trees.values(), (POINTS, TRAINING), strict=True):
        tree.update_from_flattened_dict(changes)
    configs = {name: config_lib.read(tree) for name, tree in trees.items()}
    root, choice = pathlib.Path(_WORKDIR.value), random.Random(_SEED.value)
    root.mkdir(parents=True)
    pipeline.run(configs["points"], root / "points", pipeline.STAGES, [])
    pipeline.run(configs["points"], root / "points", ["report"], [])  # whose page has all seconds
    pipeline.run(configs["training"], root / "training", ["pretrain"], [])
    for name, case in CASES.items():
        if case.missing:
            shutil.copytree(root / case.whole, root / name)
        for path in (found for pattern in case.missing for found in (root / name).glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    alone = read_alone(root, choice)
    console.say(f"read by themselves: {dict(alone)}")
    counts: collections.Counter[str] = collections.Counter()
    for number, (name, file, fault) in enumerate(faults(root, choice)[: _COUNT.value], 1):
        case, copy = CASES[name], root / "copy"
        shutil.copytree(root / name, copy)
        damaged = FAULTS[fault]((copy / file).read_bytes(), choice)
        (copy / file).unlink() if damaged is None else (copy / file).write_bytes(damaged)
        run = functools.partial(pipeline.run, configs[case.whole], copy, query_paths=[])
        outcome, sentences = followed(run, copy, case.asked)
        if outcome == "ended well" and (differing := different(root / case.whole, copy, case.asked, file.name)):
            outcome, sentences = "silently wrong", [*sentences, *differing]
        counts[outcome] += 1
        counts["advice followed"] += bool(sentences)
        if outcome != "ended well":
            console.say(f"{name}, {file}, {fault}: {outcome}: {' | '.join(sentences)}")
        shutil.rmtree(copy)
        if number % 20 == 0:
            jax.clear_caches()  # or all runs' programs stay in memory
        console.say(f"{number} faults: {dict(counts)}")
    return 1 if alone["believed"] or set(counts) - {"ended well", "advice followed"} else 0


def read_alone(root: pathlib.Path, choice: random.Random) -> collections.Counter[str]:
    """What readers make of every fault in every checkpoint and record of the cases."""
    from cdisc.app import checkpoints
    from cdisc.errors import UserError

    def arrays(folder: pathlib.Path) -> dict[str, bytes]:
        return {name: bytes(array) for name, array in checkpoints.arrays_of(folder).items()}

    pieces = [(manifest.parent, arrays) for name in CASES for manifest in (root / name).rglob("manifest.json")]
    records = [root / name / f"{record}.json" for name in CASES for record in ("config", "results", "seconds")]
    pieces += [(path, lambda record: storage.read_json(record, "")) for path in records if path.exists()]
    outcomes: collections.Counter[str] = collections.Counter()
    for piece, read in pieces:
        expected = read(piece)
        for file in [path for path in (piece, *piece.rglob("*")) if path.is_file() and path.stat().st_size]:
            content = file.read_bytes()
            for fault in FAULTS.values():
                damaged = fault(content, choice)
                file.unlink() if damaged is None else file.write_bytes(damaged)
                try:
                    outcomes["as written" if read(piece) == expected else "believed"] += 1
                except (UserError, FileNotFoundError):
                    outcomes["told"] += 1
            file.write_bytes(content)
    return outcomes


def faults(root: pathlib.Path, choice: random.Random) -> list[tuple[str, pathlib.Path, str]]:
    """All faults of all files that are not empty, in the cases by name; one of each kind of file and fault first."""
    files = [(name, path) for name in CASES for path in sorted((root / name).rglob("*")) if path.is_file()]
    choice.shuffle(files)
    seen, first, later = set(), [], []
    for name, path in files:
        kind = name, re.sub(r"[0-9a-f]{32}|\d+", "N", str(path))
        if path.stat().st_size:
            (later if kind in seen else first).extend((name, path.relative_to(root / name), fault) for fault in FAULTS)
            seen.add(kind)
    for some in (first, later):
        choice.shuffle(some)
    return first + later


def followed(
    run: Callable[[Sequence[str]], None], workdir: pathlib.Path, stages: Sequence[str]
) -> tuple[str, list[str]]:
    """Runs, does what is advised, and so on: how it ended, and the sentences on the way."""
    from cdisc.app.run import STAGES

    sentences: list[str] = []
    while len(sentences) < 5:
        ended = once(functools.partial(run, stages))
        if "Traceback" in ended.sentence + ended.said:
            return "traceback", [*sentences, ended.sentence + ended.said]
        if not ended.sentence:
            return "ended well", sentences
        sentences.append(ended.sentence)
        if found := re.match(r"(/\S+) .*: delete it and run again", ended.sentence):
            removed(pathlib.Path(found[1]))
        elif found := re.search(r"or remove ([\w. ]+) from this one", ended.sentence):
            for name in (gone := found[1].split(" and ")):
                removed(workdir / name)
            stages = [*(stage for stage in STAGES if stage in {*gone, *stages})]
        elif found := re.search(r"add (\w+) to --stages", ended.sentence):
            stages = [found[1], *stages]
        else:
            break
    return "dead end", sentences


def removed(path: pathlib.Path) -> None:
    """Removes a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def once(run: Callable[[], None]) -> Ended:
    """Runs in this process, as the command does; what threads write to standard error counts, too."""
    from cdisc.errors import UserError

    sentence = ""
    with tempfile.TemporaryFile("w+") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run()
        except UserError as error:
            sentence = str(error)
        except OSError as error:
            sentence = storage.complaint(error, None) or traceback.format_exc()
        except Exception:
            sentence = traceback.format_exc()
        said.seek(0)
        return Ended(sentence, said.read())


def different(whole: pathlib.Path, copy: pathlib.Path, stages: Sequence[str], damaged: str) -> list[str]:
    """The names of what the stages have left otherwise than in the whole run."""
    from cdisc.app import checkpoints
    from cdisc.storage import DamagedError

    if "report" in stages:  # drawn from files that were read, and so were whole; of times nothing is promised
        names = ["report/index.html"] if damaged != "seconds.json" else []
        return [name for name in names if (whole / name).read_bytes() != (copy / name).read_bytes()]
    names = ["discover/hierarchy.json"] if "discover" in stages else []
    if (copy / "pretrain").exists() and damaged != "metrics.jsonl":  # which nothing reads
        names.append("pretrain/metrics.jsonl")
    found = [name for name in names if (whole / name).read_bytes() != (copy / name).read_bytes()]
    for stage in stages:
        for folder in (path.parent for path in whole.glob(f"{stage}/*/manifest.json")):
            at = folder.relative_to(whole)
            try:
                one, other = (checkpoints.arrays_of(place / at) for place in (whole, copy))
            except DamagedError:  # nobody has read it yet, and whoever does will be told
                continue
            if {name: bytes(array) for name, array in one.items()} != {name: bytes(a) for name, a in other.items()}:
                found.append(str(at))
    return found


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.configure()
    app.run(main)
