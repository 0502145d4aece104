"""Makes the networks beside this file: small ones that are trained as little as people's first ones are.

    python tests/weak/make.py [NAME ...]

Each takes two to five minutes on two idle cores. Mean shift finds nothing in some of them: it leaps across the modes.
"""

import dataclasses
import functools
import pathlib
import sys

from cdisc import runtime

runtime.configure()  # before JAX is used

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from cdisc.data import digits  # noqa: E402
from cdisc.learning import pretrain  # noqa: E402
from cdisc.networks import backbone, bundled, interop, unet  # noqa: E402

SMALL = unet.UNetConfig(
    sample_size=16,
    in_channels=1,
    out_channels=1,
    block_out_channels=(12, 20),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    add_attention=False,
)
SHORT = interop.SchedulerConfig(num_train_timesteps=400, beta_start=2.5e-4, beta_end=5e-2)
NETWORKS = {
    "classes_v": (
        dataclasses.replace(SMALL, num_class_embeds=11),
        interop.SchedulerConfig(prediction_type="v_prediction"),
        1000,
    ),
    "unconditional": (dataclasses.replace(SMALL, sample_size=28), interop.SchedulerConfig(), 1200),
    "short_chain": (SMALL, SHORT, 1200),
}
"""The network, its scheduler, and the steps of its training."""


def pictures(digit: np.ndarray, size: int) -> np.ndarray:
    """Digits (N, 28, 28) as pictures (N, size, size, 1) in [-1, 1]."""
    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX)) for image in digit]
    return np.stack(small)[..., None].astype(np.float32) / 127.5 - 1.0


def main(name: str) -> None:
    """Trains a network and writes it, in half precision."""
    network, scheduler, steps = NETWORKS[name]
    schedule = scheduler.schedule()
    model = backbone.unet(network, schedule, scheduler.prediction_type)
    options = pretrain.PretrainOptions(
        steps=steps, batch_size=32, learning_rate=2e-3, warmup_steps=100, decay_steps=300, ema_decay=0.99
    )
    data = digits.partition(digits.load("bundled")).train
    images = jnp.asarray(pictures(data.images, network.sample_size))
    labels = jnp.asarray(data.labels, jnp.int32) * (network.num_class_embeds is not None)
    key = jax.random.key(0)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: pretrain.TrainState) -> tuple[pretrain.TrainState, dict[str, jax.Array]]:
        rows = jax.random.randint(pretrain.keys(key, state.step)[0], (options.batch_size,), 0, len(images))
        total = pretrain.add_gradient(
            pretrain.zero_total(state.params),
            state.params,
            (images[rows], labels[rows]),
            pretrain.draw(state, key, images.shape[1:], options=options, schedule=schedule),
            jnp.ones(options.batch_size, bool),
            backbone=model,
            options=options,
            schedule=schedule,
        )
        return pretrain.update(state, total, options=options)

    state = pretrain.init(network, options, key)
    for i in range(steps):
        state, metrics = step(state)
        if i % 100 == 99:
            print(f"{name}: {i + 1} steps, loss {float(metrics['loss']):.3f}", flush=True)
    path = pathlib.Path(__file__).with_name(f"{name}.npz")
    bundled.save_npz(path, state.ema, bundled.about(network, scheduler))


if __name__ == "__main__":
    for each in sys.argv[1:] or NETWORKS:
        main(each)
