"""Makes `cdisc/bundled/NAME_novelty.json`: how likely compositions of pictures of trained classes are.

    python -m tools.novelty --config=configs/colormnist.py:small

A query far below these is warned of (`cdisc.discovery.novelty`; `docs/results.md` has what the score tells). They hold
for the bundled network and for `config.discover` as they are here; a run with other settings says nothing.
"""

import dataclasses
import json
import tempfile

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration of the bundled network.")
_PICTURES = flags.DEFINE_integer("pictures", 20, "Of a trained class each, which no training saw.", lower_bound=2)


def main(_: list[str]) -> None:
    """Discovers each of the pictures, and writes the file."""
    import pathlib

    import jax
    import jax.numpy as jnp
    import numpy as np

    from cdisc import storage
    from cdisc.app.config import read
    from cdisc.app.run import prepare
    from cdisc.app.stages.pretrain import pretrain
    from cdisc.discovery import concepts, novelty
    from cdisc.keys import named
    from cdisc.networks import bundled
    from cdisc.networks.backbone import null_eps

    config = read(_CONFIG.value)
    options, rng, key = config.discover, np.random.default_rng(config.seed), jax.random.key(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(config, pathlib.Path(folder), [])
        params = pretrain(run, active=True)

    @jax.jit
    def composed(params, query, key):
        found = concepts.discover(null_eps(run.backbone, params), run.schedule, query, key, options)
        return novelty.composed_likelihoods(query, found, options)

    trained = run.dataset.split.trained
    rng.permutation(len(run.dataset.split.held_out))  # the classes are those of benchmarks/trust.py
    chosen = rng.permutation(len(trained))[: _PICTURES.value]
    likelihoods = []
    for i in console.progress(range(len(chosen)), "novelty", len(chosen)):
        query = jnp.asarray(run.dataset.queries(trained[chosen[i]], 1)[0])
        likelihoods.append(np.round(composed(params, query, named(key, "trained", i)), 4).tolist())
    content = {"discover": storage.digest(dataclasses.asdict(options)), "likelihoods": likelihoods}
    path = bundled.FOLDER / f"{config.pretrain.bundle}_novelty.json"
    storage.write_text(path, json.dumps(content) + "\n")
    console.say(f"novelty: {path}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
