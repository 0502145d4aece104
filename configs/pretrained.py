"""A network that was trained elsewhere, with diffusers, and pictures of your own: its modes, and what it makes of them.

Command:  python -m cdisc.main --config=configs/pretrained.py --config.network.path=FOLDER --query=PICTURE --workdir=DIR
Cost:     at most 3,120 evaluations of the network a query for its modes, 1,400 for samples, 960 with gradients; what it
          takes to follow the modes is written to `discover/hierarchy.json`

FOLDER is what diffusers saved of a `UNet2DModel` with its scheduler, or of a pipeline (`cdisc.networks.interop`). The
pictures' size, their channels, the schedule, what the network predicts and how its sampler clips and steps are the
folder's. An unconditional network is its own null class, and adaptation adds a class to it. Nothing is known of the
pictures, so nothing is judged. Timesteps are given for 1,000 and scaled to the folder's (`network.num_timesteps`).
"""

import ml_collections

from cdisc.app import config
from cdisc.data import queries
from cdisc.discovery.concepts import DiscoveryOptions
from cdisc.learning.adapt import AdaptOptions


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    embedding = AdaptOptions(
        pool="query", start="normal", steps=40, batch_size=16, embedding_learning_rate=3e-2, decay=True
    )
    lora = AdaptOptions(
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
    )
    c = config.tree(
        config.Config(
            data=queries.Options(),
            network=config.DiffusersFolder(),
            discover=DiscoveryOptions(
                timesteps=(50, 100, 200, 300, 400, 500),
                starts_per_t=8,
                ascent="barzilai_borwein",  # nothing is known of the network's training
                polish=0,
                weak_residual=0.2,
                capacity=48,
                num_experts=8,
                hierarchy=(50, 100, 200, 300, 400, 500),
            ),
            sampling=config.Sampling(num_steps=25, batch=16),
            adapt=config.Adapt(pool_size=8, class_draws=4, chunk=1, levels={"embedding": embedding, "lora": lora}),
            evaluate=config.Evaluate(
                query_only_sigma=0.3,
                methods={"embedding": config.Method(level="embedding"), "lora": config.Method(level="lora")},
            ),
        )
    )
    # The folder says what was trained, and nothing is known by which samples could be judged.
    del c.diffusion, c.pretrain, c.evaluate.judge
    del c.sampling.clip, c.sampling.timestep_spacing, c.sampling.steps_offset, c.sampling.set_alpha_to_one
    return c
