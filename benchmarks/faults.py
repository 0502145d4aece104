"""What a run makes of damaged files, and whether what it says then leads on.

    JAX_PLATFORMS=cpu python -m benchmarks.faults --workdir=runs/faults --count=240

A run of next to nothing is made once. Copies of its workdir, finished and half finished, each get one fault in one of
their files: cut, zeroed, a bit flipped, "[]" in its place, no UTF-8, gone. Then the run is asked for its report
(finished) or for all that is left to do (half finished), what it advises is done, and so on until it ends well. It is
silently wrong if it does so with other arrays, figures or modes than without the fault, and a dead end if a sentence
advises nothing that helps, or five of them do not lead to the end. Files and faults are drawn so that each kind of file
gets each fault first.
"""

import collections
import contextlib
import dataclasses
import functools
import json
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

FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "cut": lambda content, _: content[: len(content) // 2],
    "zeroed": lambda content, _: bytes(len(content)),
    "bit": lambda content, at: _flip(bytearray(content), at.randrange(8 * len(content))),
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
    whole = root / "whole"
    pipeline.run(config, whole, pipeline.STAGES, [])
    expected = contents(whole)
    console.say("the whole run is there")
    half = root / "half"
    shutil.copytree(whole, half)
    for left in ("pretrain/params", "pretrain/train/step_00000006", "discover/query_0001", "results.json", "report"):
        shutil.rmtree(half / left) if (half / left).is_dir() else (half / left).unlink()
    for left in (*half.glob("discover/hierarchy_*"), half / "adapt" / "query_0001", half / "evaluate"):
        shutil.rmtree(left)
    counts: collections.Counter[str] = collections.Counter()
    for number, (base, file, fault) in enumerate(faults((whole, half), choice)[: _COUNT.value]):
        copy = root / f"{number:04d}"
        shutil.copytree(base, copy)
        place = copy / file
        content = place.read_bytes()
        damaged = FAULTS[fault](content, choice)
        if damaged == content:
            counts["no change"] += 1
            shutil.rmtree(copy)
            continue
        place.unlink() if damaged is None else place.write_bytes(damaged)
        stages = ["report"] if base == whole else list(pipeline.STAGES)
        outcome, sentences = followed(lambda given, at=copy: pipeline.run(config, at, given, []), copy, stages)
        if outcome == "ended well" and (differing := different(expected, copy)):
            outcome, sentences = "silently wrong", [*sentences, *differing]
        counts[outcome] += 1
        counts["advised first"] += bool(sentences)
        if outcome != "ended well":
            console.say(f"{base.name} {file} {fault}: {outcome}: {' | '.join(sentences)}")
        shutil.rmtree(copy)
    console.say(f"{dict(counts)}")
    return 1 if set(counts) - {"ended well", "advised first", "no change"} else 0


def faults(bases: Sequence[pathlib.Path], choice: random.Random) -> list[tuple[pathlib.Path, pathlib.Path, str]]:
    """All faults of all files, one of each kind of file and fault first."""
    files = [(base, path.relative_to(base)) for base in bases for path in sorted(base.rglob("*")) if path.is_file()]
    files = [(base, path) for base, path in files if (base / path).stat().st_size]
    choice.shuffle(files)
    seen, first, later = set(), [], []
    for base, path in files:
        kind = base.name, re.sub(r"[0-9a-f]{32}|\d+", "N", str(path))
        (later if kind in seen else first).extend((base, path, fault) for fault in FAULTS)
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
            stages = ["pretrain", "discover", "adapt", "evaluate", "report"]
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


def contents(workdir: pathlib.Path) -> dict[str, object]:
    """All that a page is drawn from and the metrics of training, by name; of arrays the bytes."""
    from cdisc.app import checkpoints
    from cdisc.app.report import results as results_lib

    found: dict[str, object] = {
        f"{manifest.parent.relative_to(workdir)}: {name}": bytes(array)
        for manifest in sorted(workdir.rglob("manifest.json"))
        for name, array in checkpoints.arrays_of(manifest.parent).items()
    }
    tree = workdir / "discover" / "hierarchy.json"
    found["hierarchy"] = json.loads(tree.read_text(encoding="utf-8"))
    found["results"] = results_lib.read(workdir / "results.json") | {"seconds": None}
    found["metrics"] = (workdir / "pretrain" / "metrics.jsonl").read_bytes()
    return found


def different(expected: dict[str, object], workdir: pathlib.Path) -> list[str]:
    """The names under which a workdir is not as expected; without training's checkpoints, some of which may be gone."""
    found = contents(workdir)
    names = [name for name in expected.keys() | found.keys() if not name.startswith("pretrain/train")]
    return sorted(name for name in names if expected.get(name) != found.get(name))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.configure()
    app.run(main)
