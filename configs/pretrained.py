"""A network that was trained elsewhere, with diffusers, and pictures of your own: its modes, and what it makes of them.

Command:  python -m cdisc.main --config=configs/pretrained.py --config.network.path=FOLDER --query=PICTURE --workdir=DIR
Cost:     at most 3,120 evaluations of the network a query for its modes, 1,400 for samples, 960 with gradients; what it
          takes to follow the modes is written to `discover/hierarchy.json`

FOLDER is what diffusers saved of a `UNet2DModel` with its scheduler, or of a pipeline (`cdisc.networks.interop`). The
pictures' size, their channels, the schedule and what the network predicts are the folder's. An unconditional network is
its own null class, and adaptation adds a class to it. Nothing is known of the pictures, so nothing is judged.
"""

import ml_collections
from ml_collections import config_dict


def _section(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = _section(name="queries")
    c.network = _section(
        kind="diffusers",
        path="",
        null_class=config_dict.placeholder(int),  # of a network with classes: the row that stands for none of them
    )
    c.discover = _section(
        timesteps=(50, 100, 200, 300, 400, 500),
        starts_per_t=8,
        rounds=1,
        start_mode="hybrid",
        ascent="mean_shift",
        learning_rate=0.1,  # of "adam"; "mean_shift" has no step size
        max_steps=40,
        tolerance=0.005,  # residual: root mean square of eps, whose own scale is one
        max_residual=0.05,
        lanes=16,
        merge_radius=0.1,  # root mean square distance of clean prototypes
        capacity=48,
        curvature_iterations=8,
        max_curvature=0.0,  # no saddles
        probes=16,
        estimator="lattice",
        covariance="posterior",
        delta=1e-3,
        floor=1e-3,
        num_experts=8,
        tau=0.5,
        one_per_t=False,
        background_mean=0.0,
        background_variance=1.0,
        hierarchy=(50, 100, 200, 300, 400, 500),  # the modes are followed through these noise levels; () does not
    )
    c.guidance = _section(w0=1.2, w_max=2.0, elementwise=False)  # of the teacher, Eq. 14
    c.sampling = _section(num_steps=25, clip=1.0, batch=16)  # pictures of a device at once
    c.adapt = _section(
        pool_size=8,  # samples of the teacher to learn from
        guidance=_section(w0=1.2, w_max=2.0, elementwise=False),  # of the teacher in these samples
        class_draws=4,  # noisy copies of the query on which the classes are compared, where there are any
        chunk=1,
        levels=_section(
            embedding=_section(
                pool="query",
                start="normal",
                steps=40,
                batch_size=16,
                embedding_learning_rate=3e-2,
                decay=True,
            ),
            lora=_section(
                pool="both",
                start="normal",
                after="embedding",
                rank=4,
                alpha=8.0,
                steps=20,
                batch_size=16,
                learning_rate=2e-3,
                embedding_learning_rate=1e-2,
                null_dropout=0.1,
            ),
        ),
    )
    c.evaluate = _section(
        samples=8,
        class_guidance=2.0,  # of Top-1 and Top-3, where there are classes
        tau_k=1e-3,  # temperature of Top-3's weights
        query_only_sigma=0.3,
        query_only_sigmas=(),
        methods=_section(
            embedding=_section(level="embedding", guidance=2.0, teacher_weight=0.0, teacher_sigma_min=0.0),
            lora=_section(level="lora", guidance=2.0, teacher_weight=0.0, teacher_sigma_min=0.0),
        ),
    )
    return c
