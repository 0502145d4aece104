"""What a run makes of damaged files, and whether what it says then leads on.

    JAX_PLATFORMS=cpu python -m benchmarks.faults --workdir=runs/faults --count=240

A run of next to nothing is made once. Copies of its workdir, finished, half through training, and half through
discovery and adaptation, each get one fault in one of their files: cut, zeroed, a bit flipped, "[]" in its place, no
UTF-8, gone. Then the run is asked for its report, or to go on; what it advises is done; and so on until it ends well.
It is silently wrong if it does so with another page, or with other arrays, metrics or modes, than without the fault,
and a dead end if a sentence advises nothing, or five of them do not lead to the end. Each kind of file gets each fault
before another of its kind gets one.
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

from cdisc import console, runtime

_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for all runs; it must not exist.")
_COUNT = flags.DEFINE_integer("count", 240, "How many faults.")
_SEED = flags.DEFINE_integer("seed", 0, "Of files and faults.")

SMALL = {
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
    "discover.timesteps": (100, 300),
    "discover.starts_per_t": 2,
    "discover.max_steps": 4,
    "discover.capacity": 4,
    "discover.probes": 2,
    "discover.num_experts": 2,
    "discover.max_residual": 1e3,
    "discover.max_curvature": 1e3,
    "discover.hierarchy": (100, 300),
    "sampling.num_steps": 2,
    "adapt.pool_size": 2,
    "adapt.prior_size": 2,
    "adapt.class_draws": 2,
    "evaluate.num_queries": 2,
    "evaluate.samples": 2,
    "evaluate.references": 4,
    "evaluate.judge.pictures": 64,
    "evaluate.judge.steps": 2,
    "evaluate.judge.bundle": "",
}

MISSING = {
    "training": (
        "pretrain/params",
        "pretrain/train/step_*6",
        "discover",
        "adapt",
        "evaluate",
        "results.json",
        "report",
    ),
    "learning": ("discover/query_0001", "discover/hier*", "adapt/query_0001*", "evaluate", "results.json", "report"),
}
"""What copies of the whole run have not made yet."""

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
    from cdisc.app import config as config_lib
    from cdisc.app import pipeline
    from cdisc.configs import colormnist

    tree = colormnist.get_config("tiny")
    tree.update_from_flattened_dict(SMALL)
    for level in tree.adapt.levels.values():
        level.update(steps=2, batch_size=2)
    config = config_lib.read(tree)
    root, choice = pathlib.Path(_WORKDIR.value), random.Random(_SEED.value)
    root.mkdir(parents=True)
    whole = root / "finished"
    pipeline.run(config, whole, pipeline.STAGES, [])
    pipeline.run(config, whole, ["report"], [])  # whose page knows how long the first one took
    asked = {"finished": ["report"], "training": ["pretrain"], "learning": ["discover", "adapt"]}
    for name, missing in MISSING.items():
        shutil.copytree(whole, root / name)
        for path in (found for pattern in missing for found in (root / name).glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    counts: collections.Counter[str] = collections.Counter()
    for number, (name, file, fault) in enumerate(faults([root / name for name in asked], choice)[: _COUNT.value]):
        copy = root / f"{number:04d}"
        shutil.copytree(root / name, copy)
        content = (copy / file).read_bytes()
        damaged = FAULTS[fault](content, choice)
        (copy / file).unlink() if damaged is None else (copy / file).write_bytes(damaged)
        run = functools.partial(pipeline.run, config, copy, query_paths=[])
        outcome, sentences = followed(run, copy, asked[name])
        if outcome == "ended well" and (differing := different(whole, copy, asked[name], file.name)):
            outcome, sentences = "silently wrong", [*sentences, *differing]
        counts[outcome] += 1
        counts["advice followed"] += bool(sentences)
        if outcome != "ended well":
            console.say(f"{name} {file} {fault}: {outcome}: {' | '.join(sentences)}")
        shutil.rmtree(copy)
    console.say(f"{counts.total() - counts['advice followed']} faults: {dict(counts)}")
    return 1 if set(counts) - {"ended well", "advice followed"} else 0


def faults(bases: Sequence[pathlib.Path], choice: random.Random) -> list[tuple[str, pathlib.Path, str]]:
    """All faults of all files that are not empty, one of each kind of file and fault first."""
    files = [(base.name, path.relative_to(base)) for base in bases for path in sorted(base.rglob("*"))]
    files = [(name, path) for name, path in files if (bases[0].parent / name / path).is_file()]
    files = [(name, path) for name, path in files if (bases[0].parent / name / path).stat().st_size]
    choice.shuffle(files)
    seen, first, later = set(), [], []
    for name, path in files:
        kind = name, re.sub(r"[0-9a-f]{32}|\d+", "N", str(path))
        (later if kind in seen else first).extend((name, path, fault) for fault in FAULTS)
        seen.add(kind)
    for some in (first, later):
        choice.shuffle(some)
    return first + later


def followed(run: Callable[[list[str]], None], workdir: pathlib.Path, stages: list[str]) -> tuple[str, list[str]]:
    """Runs, does what is advised, and so on: how it ended, and the sentences on the way."""
    sentences: list[str] = []
    while len(sentences) < 5:
        ended = once(functools.partial(run, stages))
        if "Traceback" in ended.sentence + ended.said:
            return "traceback", [*sentences, ended.sentence + ended.said]
        if not ended.sentence:
            return "ended well", sentences
        sentences.append(ended.sentence)
        if found := re.match(r"(/\S+) .*: delete that folder and run again", ended.sentence):
            shutil.rmtree(found[1])
        elif found := re.search(r"or remove ([\w ]+) from this one", ended.sentence):
            for stage in found[1].split(" and "):
                shutil.rmtree(workdir / stage)
            stages = ["pretrain", "discover", "adapt", *stages]
        elif found := re.search(r"add (\w+) to --stages", ended.sentence):
            stages = [found[1], *stages]
        else:
            break
    return "dead end", sentences


def once(run: Callable[[], None]) -> Ended:
    """Runs in this process, as the command does; what threads write to standard error counts, too."""
    from cdisc.app import checkpoints
    from cdisc.errors import UserError

    sentence = ""
    with tempfile.TemporaryFile("w+") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run()
        except UserError as error:
            sentence = str(error)
        except OSError as error:
            sentence = checkpoints.complaint(error, None) or traceback.format_exc()
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
    names = {"pretrain": ["pretrain/metrics.jsonl"], "discover": ["discover/hierarchy.json"]}.get(stages[0], [])
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
