"""What all tests share: strict shapes, the command's own settings of JAX, and small networks."""

import os

import pytest

os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# As the command does before JAX is first used: the same compiler options, and compilations kept for the next time.
from cdisc import runtime

runtime.configure()


@pytest.fixture(scope="session")
def network():
    """A U-Net with every kind of layer: patch stem, strided convolution, attention, skips, three classes and null."""
    from cdisc.networks.unet import UNetConfig

    return UNetConfig(
        sample_size=8,
        num_class_embeds=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        patch_size=2,
    )


@pytest.fixture(scope="session")
def random_params():
    """`random_params(network)`: parameters without a single zero, so that every layer has a say in the output."""
    import flax.traverse_util
    import jax
    import numpy as np

    from cdisc.networks import denoiser

    def make(network, seed=0):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda key: denoiser.init(network, key), jax.random.key(0))
        flat = {}
        for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
            values = rng.standard_normal(leaf.shape)
            if path.endswith("/kernel"):
                values /= np.sqrt(np.prod(leaf.shape[:-1]))
            else:
                values = 0.2 * values + path.endswith("/scale")
            flat[path] = jax.numpy.asarray(values, "float32")
        return flax.traverse_util.unflatten_dict(flat, sep="/")

    return make
