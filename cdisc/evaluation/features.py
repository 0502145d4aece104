"""Feature spaces in which sets of pictures are compared, behind one protocol: the judge's, CLIP's and DINOv2's.

Weights of general networks are files of the user's own; nothing is downloaded. Both are vision transformers
(Dosovitskiy et al. 2021), read from the safetensors files that Hugging Face has them in.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cdisc.errors import require_known
from cdisc.evaluation.judge import Judge
from cdisc.evaluation.protocol import Extract

Weights = Mapping[str, jax.Array]


@flax.struct.dataclass
class Features:
    """A feature space.

    Attributes:
      label: whose features they are, as in "compared in ... features".
      extract: pictures (N, H, W, 3) in [-1, 1] to features (N, D).
    """

    label: str = flax.struct.field(pytree_node=False)
    extract: Extract = flax.struct.field(pytree_node=False)


class _Source(NamedTuple):
    label: str
    file: str
    page: str


SOURCES = {
    "clip": _Source("CLIP ViT-B/32's", "model.safetensors", "https://huggingface.co/openai/clip-vit-base-patch32"),
    "dinov2": _Source("DINOv2 ViT-S/14's", "model.safetensors", "https://huggingface.co/facebook/dinov2-small"),
}
"""What general features there are, and where a user finds their weights."""


def judge_features(judge: Judge) -> Features:
    """The dataset's own judge's: they compare methods with one another, never with a published FID.

    Examples:
      >>> judge_features(judge).label
      "the judge's"
    """
    return Features("the judge's", judge.features)


def load(name: str, path: str) -> Features:
    """The features of a general network whose weights are a file of the user's.

    Args:
      name: one of `SOURCES`.
      path: of the file.

    Raises:
      ValueError: for another name; and for a file that is not there or holds another network, with what to download.

    Examples:
      >>> load("clip", "")
      Traceback (most recent call last):
          ...
      ValueError: features=clip needs weights, and no file is not there: ...
    """
    require_known("features", name, tuple(SOURCES))
    source, file = SOURCES[name], pathlib.Path(path).expanduser()
    wanted = f"download {source.file} from {source.page} and give it as --config.evaluate.weights=FILE"
    if not path or not file.is_file():
        raise ValueError(f"features={name} needs weights, and {path or 'no file'} is not there: {wanted}.")
    try:
        weights = {key: jnp.asarray(value, jnp.float32) for key, value in load_file(file).items()}
        model = {"clip": clip, "dinov2": dinov2}[name]
        jax.eval_shape(model, weights, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no weights of {source.label} network ({error}): {wanted}.") from error
    return Features(source.label, functools.partial(_in_batches, jax.jit(model), weights))


def _in_batches(
    model: Callable[[Weights, jax.Array], jax.Array], weights: Weights, pictures: jax.Array, batch: int = 16
) -> jax.Array:
    """The features, `batch` pictures at once, whatever their number: the last ones are repeated."""
    count = pictures.shape[0]
    rows = np.minimum(np.arange(-(-count // batch) * batch), count - 1).reshape(-1, batch)
    return jnp.concatenate([model(weights, pictures[r]) for r in rows])[:count]


def clip(weights: Weights, pictures: jax.Array, *, size: int = 224, width_of_head: int = 64) -> jax.Array:
    """CLIP's image embedding (Radford et al. 2021), without the normalisation to length 1: (N, D).

    Args:
      weights: under the names of transformers' `CLIPModel`.
      pictures: (N, H, W, 3) in [-1, 1]; resized to `size` by bicubic interpolation.
      size: of the pictures that the network was trained on.
      width_of_head: channels of a head of attention.

    Examples:
      >>> ones, of = jnp.ones(4), "vision_model."
      >>> norms = ("pre_layrnorm.weight", "pre_layrnorm.bias", "post_layernorm.weight", "post_layernorm.bias")
      >>> weights = {f"{of}{name}": ones for name in norms}
      >>> sizes = {"class_embedding": (4,), "patch_embedding.weight": (4, 3, 2, 2), "position_embedding.weight": (5, 4)}
      >>> weights |= {f"{of}embeddings.{name}": jnp.ones(size) for name, size in sizes.items()}
      >>> parts = [f"self_attn.{which}_proj" for which in ("q", "k", "v", "out")]
      >>> parts = dict.fromkeys([*parts, "mlp.fc1", "mlp.fc2"], (4, 4))
      >>> parts |= dict.fromkeys(("layer_norm1", "layer_norm2"), (4,))
      >>> weights |= {f"{of}encoder.layers.0.{name}.weight": jnp.ones(size) for name, size in parts.items()}
      >>> weights |= {f"{of}encoder.layers.0.{name}.bias": ones for name in parts}
      >>> weights |= {"visual_projection.weight": jnp.ones((6, 4))}
      >>> jax.jit(lambda pictures: clip(weights, pictures, size=4, width_of_head=2))(pictures).shape
      (2, 6)
    """
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    w = {key.removeprefix("vision_model."): value for key, value in weights.items()}
    x = _patches(_normalised(pictures, size, mean, deviation), w["embeddings.patch_embedding.weight"])
    x = _with_class(x, w["embeddings.class_embedding"]) + w["embeddings.position_embedding.weight"][None]
    x = _layer_norm(w, "pre_layrnorm", x, 1e-5)
    for i in range(_count(w, "encoder.layers.")):
        of = f"encoder.layers.{i}."
        names = [f"{of}self_attn.{part}_proj" for part in ("q", "k", "v", "out")]
        x = x + _attention(w, names, _layer_norm(w, f"{of}layer_norm1", x, 1e-5), width_of_head)
        y = _linear(w, f"{of}mlp.fc1", _layer_norm(w, f"{of}layer_norm2", x, 1e-5))
        x = x + _linear(w, f"{of}mlp.fc2", y * jax.nn.sigmoid(1.702 * y))
    return _layer_norm(w, "post_layernorm", x[:, 0], 1e-5) @ w["visual_projection.weight"].T


def dinov2(weights: Weights, pictures: jax.Array, *, size: int = 224, width_of_head: int = 64) -> jax.Array:
    """DINOv2's class token (Oquab et al. 2023): (N, D).

    Args:
      weights: under the names of transformers' `Dinov2Model`.
      pictures: (N, H, W, 3) in [-1, 1]; resized to `size` by bicubic interpolation.
      size: a multiple of the patches' size; the position embeddings are interpolated to it.
      width_of_head: channels of a head of attention.

    Examples:
      >>> weights = {f"layernorm.{kind}": jnp.ones(4) for kind in ("weight", "bias")}
      >>> sizes = {"cls_token": (1, 1, 4), "position_embeddings": (1, 5, 4), "patch_embeddings.projection.bias": (4,)}
      >>> sizes |= {"patch_embeddings.projection.weight": (4, 3, 2, 2)}
      >>> weights |= {f"embeddings.{name}": jnp.ones(size) for name, size in sizes.items()}
      >>> parts = [f"attention.attention.{which}" for which in ("query", "key", "value")] + ["attention.output.dense"]
      >>> sizes = dict.fromkeys([*parts, "mlp.fc1", "mlp.fc2"], (4, 4)) | dict.fromkeys(("norm1", "norm2"), (4,))
      >>> weights |= {f"encoder.layer.0.{name}.weight": jnp.ones(size) for name, size in sizes.items()}
      >>> weights |= {f"encoder.layer.0.{name}.bias": jnp.ones(4) for name in sizes}
      >>> weights |= {f"encoder.layer.0.layer_scale{i}.lambda1": jnp.ones(4) for i in (1, 2)}
      >>> jax.jit(lambda pictures: dinov2(weights, pictures, size=4, width_of_head=2))(pictures).shape
      (2, 4)
    """
    w = weights
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    x = _patches(_normalised(pictures, size, mean, deviation), kernel)
    x = x + _along(w["embeddings.patch_embeddings.projection.bias"], x)
    positions = w["embeddings.position_embeddings"][0]
    x = _with_class(x, w["embeddings.cls_token"][0, 0]) + _positions(positions, size // kernel.shape[-1])[None]
    for i in range(_count(w, "encoder.layer.")):
        of = f"encoder.layer.{i}."
        names = [f"{of}attention.attention.{part}" for part in ("query", "key", "value")]
        y = _attention(w, [*names, f"{of}attention.output.dense"], _layer_norm(w, f"{of}norm1", x, 1e-6), width_of_head)
        x = x + _along(w[f"{of}layer_scale1.lambda1"], y) * y
        y = _linear(w, f"{of}mlp.fc1", _layer_norm(w, f"{of}norm2", x, 1e-6))
        y = _linear(w, f"{of}mlp.fc2", jax.nn.gelu(y, approximate=False))
        x = x + _along(w[f"{of}layer_scale2.lambda1"], y) * y
    return _layer_norm(w, "layernorm", x[:, 0], 1e-6)


def _normalised(pictures: jax.Array, size: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> jax.Array:
    """Pictures of `size`, in the units that the network was trained in."""
    resized = jax.image.resize(pictures, (pictures.shape[0], size, size, 3), "cubic")
    unit = jnp.clip((resized + 1.0) / 2.0, 0.0, 1.0)
    return (unit - jnp.asarray(mean)[None, None, None]) / jnp.asarray(deviation)[None, None, None]


def _patches(pictures: jax.Array, kernel: jax.Array) -> jax.Array:
    """The embeddings (N, patches, D) of patches, by a kernel (D, 3, P, P)."""
    strides = kernel.shape[2:]
    x = jax.lax.conv_general_dilated(pictures, kernel, strides, "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC"))
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _with_class(x: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])), x], axis=1)


def _positions(table: jax.Array, side: int) -> jax.Array:
    """Position embeddings (1 + M M, D) for side x side patches, interpolated as PyTorch's bicubic does (a = -0.75)."""
    old = round((table.shape[0] - 1) ** 0.5)
    if old == side:
        return table
    at = (np.arange(side) + 0.5) * old / side - 0.5
    matrix = np.zeros((side, old))
    for row, place in enumerate(at):
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            d = abs(place - column)
            near = (1.25 * d - 2.25) * d * d + 1.0
            far = -0.75 * (((d - 5.0) * d + 8.0) * d - 4.0)
            matrix[row, min(max(column, 0), old - 1)] += near if d <= 1.0 else far
    grid = table[1:].reshape(old, old, -1)
    resized = jnp.einsum("ia,jb,abd->ijd", jnp.asarray(matrix, jnp.float32), jnp.asarray(matrix, jnp.float32), grid)
    return jnp.concatenate([table[:1], resized.reshape(side * side, -1)])


def _count(weights: Weights, prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix))


def _linear(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    return x @ weights[f"{name}.weight"].T + _along(weights[f"{name}.bias"], x)


def _layer_norm(weights: Weights, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return scaled * _along(weights[f"{name}.weight"], x) + _along(weights[f"{name}.bias"], x)


def _along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values (D,) of the last axis of `x` (..., D)."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def _attention(weights: Weights, names: list[str], x: jax.Array, width: int) -> jax.Array:
    """Attention of all tokens (N, T, D) to all, by projections named as queries, keys, values and output."""
    q, k, v = (_linear(weights, name, x).reshape(*x.shape[:2], -1, width) for name in names[:3])
    return _linear(weights, names[3], jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
