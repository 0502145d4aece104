"""Composition in the plane: the exact score of a Gaussian mixture stands where a network would.

Command: `python -m cdisc.main --config=configs/mixture.py`
Time: see README.md
Figures: see README.md

Twelve cells of a 4 x 4 grid are trained, four are held out, one in each row and each column.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.data = ml_collections.ConfigDict()
    c.data.name = "planar"
    c.data.levels = (-0.9, -0.3, 0.3, 0.9)  # of either coordinate
    c.data.std = 0.06  # of a cell; neighbours are ten of these apart
    c.data.held_out = (  # write factor=value; a factor left out means all of its values
        "horizontal=-0.9 vertical=0.3",
        "horizontal=-0.3 vertical=0.9",
        "horizontal=0.3 vertical=-0.9",
        "horizontal=0.9 vertical=-0.3",
    )

    c.diffusion = ml_collections.ConfigDict()
    c.diffusion.num_timesteps = 1000
    c.diffusion.beta_start = 1e-4
    c.diffusion.beta_end = 2e-2

    c.discover = ml_collections.ConfigDict()
    c.discover.timesteps = (50, 100, 150, 200, 250, 300, 350, 400)
    c.discover.starts_per_t = 8
    c.discover.start_mode = "hybrid"
    c.discover.ascent = "mean_shift"
    c.discover.learning_rate = 0.1  # of "adam"; "mean_shift" has no step size
    c.discover.max_steps = 40
    c.discover.tolerance = 0.01  # residual: root mean square of eps, whose own scale is one
    c.discover.lanes = 16
    c.discover.merge_radius = 0.05  # root mean square distance of clean prototypes
    c.discover.capacity = 64
    c.discover.curvature_iterations = 8
    c.discover.probes = 2  # two Hadamard probes separate two coordinates exactly
    c.discover.estimator = "lattice"
    c.discover.covariance = "posterior"
    c.discover.delta = 1e-3
    c.discover.floor = 1e-4
    c.discover.num_experts = 3
    c.discover.tau = 0.5
    c.discover.one_per_t = False
    c.discover.background_mean = 0.0
    c.discover.background_variance = 1.0
    c.discover.modes_only = True

    c.guidance = ml_collections.ConfigDict()
    c.guidance.w0 = 1.2
    c.guidance.w_max = 2.0
    c.guidance.elementwise = False

    c.sampling = ml_collections.ConfigDict()
    c.sampling.num_steps = 50
    c.sampling.eta = 0.0

    c.evaluate = ml_collections.ConfigDict()
    c.evaluate.queries = 4  # of each held-out cell
    c.evaluate.samples = 64  # of each query
    c.evaluate.references = 64  # of each held-out cell
    c.evaluate.k = 3  # of the k-nearest-neighbour precision and recall

    return c
