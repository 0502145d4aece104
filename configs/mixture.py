"""Composition in the plane: the exact score of a Gaussian mixture stands where a network would.

Command:  python -m cdisc.main --config=configs/mixture.py --workdir=runs/mixture
Time:     half a minute on two CPU cores, most of it drawing
Figures:  joint accuracy / recall of draws of the product of experts 0.95 / 0.95, of real points 1.00 / 0.94;
          of anything that ends in the exact score 0.00: it gives the held-out cells no mass, so it takes every sample
          to a trained cell once the teacher's weight falls (Eq. 14). A network composes because it is not exact.

Twelve cells of a 4 x 4 grid are trained, four are held out, one in each row and each column.
"""

import ml_collections


def _section(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = _section(
        name="planar",
        levels=(-0.9, -0.3, 0.3, 0.9),  # of either coordinate
        std=0.06,  # of a cell; neighbours are ten of these apart
        held_out=(  # write factor=value; a factor left out means all of its values
            "horizontal=-0.9 vertical=0.3",
            "horizontal=-0.3 vertical=0.9",
            "horizontal=0.3 vertical=-0.9",
            "horizontal=0.9 vertical=-0.3",
        ),
    )
    c.diffusion = _section(num_timesteps=1000, beta_start=1e-4, beta_end=2e-2)
    c.network = _section(kind="exact")
    c.pretrain = _section(seed=0)  # nothing is trained
    c.discover = _section(
        timesteps=(50, 100, 150, 200, 250, 300, 350, 400),
        starts_per_t=8,
        rounds=1,
        start_mode="hybrid",
        ascent="mean_shift",
        learning_rate=0.1,  # of "adam"; "mean_shift" has no step size
        max_steps=40,
        tolerance=0.005,  # residual: root mean square of eps, whose own scale is one
        max_residual=0.05,
        lanes=16,
        merge_radius=0.05,  # root mean square distance of clean prototypes
        capacity=64,
        curvature_iterations=8,
        max_curvature=0.0,  # no saddles
        probes=2,  # as many as coordinates: exact
        estimator="lattice",
        covariance="posterior",
        delta=1e-3,
        floor=1e-3,
        num_experts=3,
        tau=0.5,
        one_per_t=False,
        background_mean=0.0,
        background_variance=1.0,
        hierarchy=(50, 100, 200, 300, 400, 500, 600),  # the modes are followed through these noise levels; () does not
    )
    c.guidance = _section(w0=1.2, w_max=2.0, elementwise=False)  # of the teacher, Eq. 14
    c.sampling = _section(num_steps=50, clip=None, batch=64)  # points are not bounded; 64 at once
    # No embedding and no kernel to learn: the classes are compared with the query, and that is all.
    c.adapt = _section(
        pool_size=1,
        guidance=_section(w0=1.2, w_max=2.0, elementwise=False),
        prior_size=1,
        class_draws=64,
        chunk=4,
        levels=_section(),
    )
    c.evaluate = _section(
        num_queries=4,  # one point of each held-out cell, in an order drawn by the seed
        samples=64,
        references=100,  # other points of the cell
        k=3,  # neighbours of precision and recall
        class_guidance=2.0,  # of Top-1 and Top-3
        tau_k=1e-3,  # temperature of Top-3's weights
        query_only_sigma=1.0,
        query_only_sigmas=(0.1, 0.4),  # of which the best is reported
        methods=_section(),
    )
    return c
