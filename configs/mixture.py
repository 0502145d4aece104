"""Composition in the plane: the exact score of a Gaussian mixture stands where a network would.

Command:  python -m cdisc.main --config=configs/mixture.py --workdir=runs/mixture
Time:     half a minute on two CPU cores, most of it drawing
Figures:  joint accuracy / recall of draws of the product of experts 0.95 / 0.95, of real points 1.00 / 0.94;
          of anything that ends in the exact score 0.00: it gives the held-out cells no mass, so it takes every sample
          to a trained cell once the teacher's weight falls (Eq. 14). A network composes because it is not exact.

Twelve cells of a 4 x 4 grid are trained, four are held out, one in each row and each column.
"""

import ml_collections

from cdisc.app import config
from cdisc.data import planar
from cdisc.discovery.concepts import DiscoveryOptions


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
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
    return c
