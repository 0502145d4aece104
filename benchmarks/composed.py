"""The picture on the README's first page: what a finished run found in its queries, and what it drew.

    python -m benchmarks.composed --config=configs/colormnist.py:small --workdir=runs/colormnist

A row for each query, none left out: the query, the prototypes that were picked first, and samples of one method in the
order in which they were drawn.
"""

import pathlib

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from cdisc import runtime

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The finished run.")
_METHOD = flags.DEFINE_string("method", "embedding", "Whose samples are shown.")
_PROTOTYPES = flags.DEFINE_integer("prototypes", 4, "Prototypes shown of each query, at most as many as were picked.")
_OUT = flags.DEFINE_string("out", "docs/composed.png", "The picture.")

_ENLARGED = 2
_APART = 10
"""Pixels between query, prototypes and samples."""


def main(_: list[str]) -> None:
    """Writes the picture."""
    from cdisc.app import containers
    from cdisc.app.config import read
    from cdisc.app.run import prepare
    from cdisc.data.pictures import grid

    workdir = pathlib.Path(_WORKDIR.value)

    rows = []
    for place, query in enumerate(prepare(read(_CONFIG.value), workdir, []).queries):
        found, drawn = (
            containers.restore(workdir / stage / f"query_{place:04d}")["result"] for stage in ("discover", "evaluate")
        )
        prototypes = found.experts.mean[found.selection.indices[found.selection.mask]]
        rows.append((query.image[None], prototypes[: _PROTOTYPES.value], drawn[_METHOD.value]))
    blocks = []
    for pictures in zip(*rows, strict=True):
        block = grid(np.concatenate(pictures), columns=len(pictures[0]))
        blocks += [block, np.zeros((len(block), _APART, 4), np.uint8)]
    pixels = np.concatenate(blocks[:-1], axis=1).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    Image.fromarray(pixels).save(_OUT.value, optimize=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
