r"""The paper's claims one by one: each is a table of changes to a configuration, measured on the same queries.

    python -m benchmarks.claims --config=configs/colormnist.py:small --workdir=runs/claims --claims=tau,covariance

A row is a run of its own, in a folder of its own, which goes on from where it was. `claims.json` has the figures of
`--method` in each row, with 95% intervals over classes, and the paired differences to the row "as configured"; for
`stability`, how far the concepts of a query agree under different seeds.
"""

import itertools
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime, storage

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A folder for all that is measured.")
_CLAIMS = flags.DEFINE_list("claims", None, "Some of the claims; all by default.")
_METHOD = flags.DEFINE_string("method", "poe", "Whose figures are compared; `lora` for the claims about adaptation.")
_QUERIES = flags.DEFINE_integer("queries", 8, "Held-out classes, a query each.", lower_bound=2)


def measured(config: ml_collections.ConfigDict, workdir: pathlib.Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The results of one row; what is finished is restored."""
    from cdisc.app import pipeline
    from cdisc.app.config import read
    from cdisc.app.report import results

    changed = config.copy_and_resolve_references()
    changed.evaluate.num_queries = _QUERIES.value
    changed.update_from_flattened_dict(changes)
    pipeline.run(read(changed), workdir, pipeline.STAGES[:-1], [])
    return results.read(workdir / "results.json")


def stability(config: ml_collections.ConfigDict, workdir: pathlib.Path, changes: dict[str, Any]) -> dict[str, Any]:
    """How far the picks of each query agree under two seeds: overlap and distance, with intervals over queries."""
    from cdisc.app import containers
    from cdisc.app.config import read
    from cdisc.app.run import prepare
    from cdisc.diffusion.gaussian import Gaussian
    from cdisc.evaluation import statistics
    from cdisc.evaluation.stability import agreement

    changed = config.copy_and_resolve_references()
    changed.evaluate.num_queries = _QUERIES.value
    changed.update_from_flattened_dict(changes)
    this = prepare(read(changed), workdir, [])
    picked: dict[bytes, list[Gaussian]] = {}
    for place, query in enumerate(this.queries):
        found = containers.restore(workdir / "discover" / f"query_{place:04d}")["result"]
        rows = found.selection.indices[found.selection.mask]
        picked.setdefault(query.image.tobytes(), []).append(
            Gaussian(found.experts.mean[rows], found.experts.variance[rows])
        )
    radius = this.config.discover.merge_radius
    pairs = [
        np.mean([agreement(a, b, radius) for a, b in itertools.combinations(sets, 2)], axis=0)
        for sets in picked.values()
    ]
    overlaps, distances = np.transpose(pairs)
    rng = np.random.default_rng(0)
    return {"overlap": statistics.bootstrap(overlaps, rng), "distance": statistics.bootstrap(distances, rng)}


def main(_: list[str]) -> None:
    """Measures what is missing of the claims asked for, and prints their tables."""
    from cdisc.errors import UserError, nearest
    from cdisc.evaluation import study
    from cdisc.evaluation.claims import CLAIMS, STABILITY

    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    asked = _CLAIMS.value or list(CLAIMS)
    for claim in asked:
        if claim not in CLAIMS:
            raise UserError(f"--claims has no {claim!r}{nearest(claim, CLAIMS)}: {', '.join(CLAIMS)}.")
    path, found = workdir / "claims.json", {}
    baseline = "as configured"
    for claim in asked:
        rows = {row: (workdir / f"{claim} {row}".replace(" ", "_"), changes) for row, changes in CLAIMS[claim].items()}
        runs = {row: measured(config, *of) for row, of in rows.items()}
        if claim == STABILITY:
            found[claim] = {row: stability(config, *of) for row, of in rows.items()}
        else:
            runs = {baseline: measured(config, workdir / "as_configured", {})} | runs
            found[claim] = study.sweep(runs, _METHOD.value, baseline)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        storage.write_text(path, json.dumps(known | found, indent=1) + "\n")
        console.say(f"{claim}, {_METHOD.value}, {_QUERIES.value} classes: {json.dumps(found[claim], indent=1)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
