"""Composition in the plane: the exact score of a Gaussian mixture stands where a network would.

Command:  python -m cdisc.main --config=configs/mixture.py --workdir=runs/mixture
Time:     half a minute on two CPU cores, most of it drawing
Figures:  joint accuracy / recall of draws of the product of experts 0.95 / 0.95, of real points 1.00 / 0.94;
          of anything that ends in the exact score 0.00: it gives the held-out cells no mass, so it takes every sample
          to a trained cell once the teacher's weight falls (Eq. 14). A network composes because it is not exact.

Twelve cells of a 4 x 4 grid are trained, four are held out, one in each row and each column. The variant `:uneven` has
6 x 6 cells, two held out in each row and each column, and each level its own width: the shape of a held-out cell is
composed, too.
"""

import ml_collections

from cdisc.app import config
from cdisc.data import planar
from cdisc.discovery.concepts import DiscoveryOptions

VARIANTS = ("even", "uneven")


def get_config(variant: str = "even") -> ml_collections.ConfigDict:
    """The configuration: "even" or "uneven"."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/mixture.py has no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    c = config.tree(
        config.Config(
            data=planar.Options(),  # cells that are neighbours lie ten of their widths apart
            network=config.ExactScore(),
            discover=DiscoveryOptions(
                starts_per_t=8,
                merge_radius=0.05,
                capacity=64,
                probes=2,  # as many as coordinates: exact
                hierarchy=(50, 100, 200, 300, 400, 500, 600),
            ),
            sampling=config.Sampling(clip=None),  # points are not bounded
            # No embedding and no kernel to learn: the classes are compared with the query, and that is all.
            adapt=config.Adapt(pool_size=1, prior_size=1, class_draws=64, chunk=4),
            evaluate=config.Evaluate(samples=64, query_only_sigmas=(0.1, 0.4)),
        )
    )
    # Points are judged exactly, and nothing is trained.
    del c.pretrain, c.diffusion.prediction_type, c.evaluate.judge
    if variant == "uneven":
        levels = (-0.9, -0.54, -0.18, 0.18, 0.54, 0.9)
        away = ((i, (i + step) % len(levels)) for i in range(len(levels)) for step in (2, 4))
        held_out = tuple(f"horizontal={levels[i]} vertical={levels[j]}" for i, j in away)
        c.discover.starts_per_t = 32  # of 120 queries, 8 chains missed a neighbour of 32, and 32 chains of 6
        c.data.update(levels=levels, std=0.04, widths=(0.5, 1.5, 1.0, 0.75, 2.0, 1.25), held_out=held_out)
    return c
