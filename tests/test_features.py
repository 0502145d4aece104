"""Features of general networks against transformers' own, on small networks, and files that cannot be used."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdisc.evaluation import features
from cdisc.evaluation.judge import nearest_level_judge

SIZE, WIDTH, LAYERS = 8, 8, 2


def weights_of(names):
    """Weights that are cosines of their places, as the comparison with transformers had them."""
    return {
        name: (np.cos(np.arange(np.prod(shape)) * 0.7 + i).reshape(shape) * 0.3).astype(np.float32)
        for i, (name, shape) in enumerate(sorted(names.items()))
    }


def linear(name, out, of):
    return {f"{name}.weight": (out, of), f"{name}.bias": (out,)}


def norm(name):
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def clip_names():
    names = (
        {
            "vision_model.embeddings.class_embedding": (WIDTH,),
            "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 4, 4),
            "vision_model.embeddings.position_embedding.weight": (5, WIDTH),
            "visual_projection.weight": (6, WIDTH),
        }
        | norm("vision_model.pre_layrnorm")
        | norm("vision_model.post_layernorm")
    )
    for i in range(LAYERS):
        of = f"vision_model.encoder.layers.{i}."
        for part in ("q", "k", "v", "out"):
            names |= linear(f"{of}self_attn.{part}_proj", WIDTH, WIDTH)
        names |= norm(f"{of}layer_norm1") | norm(f"{of}layer_norm2")
        names |= linear(f"{of}mlp.fc1", 16, WIDTH) | linear(f"{of}mlp.fc2", WIDTH, 16)
    return names


def dinov2_names():
    names = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 10, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 4, 4),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
    } | norm("layernorm")
    for i in range(LAYERS):
        of = f"encoder.layer.{i}."
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            names |= linear(f"{of}attention.{part}", WIDTH, WIDTH)
        names |= norm(f"{of}norm1") | norm(f"{of}norm2")
        names |= {f"{of}layer_scale{j}.lambda1": (WIDTH,) for j in (1, 2)}
        names |= linear(f"{of}mlp.fc1", 16, WIDTH) | linear(f"{of}mlp.fc2", WIDTH, 16)
    return names


PICTURES = np.cos(np.arange(2 * SIZE * SIZE * 3) * 0.37).reshape(2, SIZE, SIZE, 3).astype(np.float32)
# transformers 5.24: CLIPVisionModelWithProjection and Dinov2Model of these sizes, with these weights and pictures.
CLIP = [
    [-0.41431198, -0.5106122, -0.3777149, -0.07527335, 0.26095605, 0.4800505],
    [-0.4144707, -0.5099207, -0.37648347, -0.0740548, 0.26161474, 0.47985372],
]
DINOV2 = [
    [0.1766643, -0.08793747, -0.25863877, 0.01420853, -0.233759, 0.20426752, 0.38091934, 0.07144295],
    [0.1762445, -0.08728013, -0.25864092, 0.01257252, -0.23501103, 0.2076606, 0.3813928, 0.07179364],
]


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [(features.clip, clip_names(), CLIP), (features.dinov2, dinov2_names(), DINOV2)],
)
def test_features_are_those_of_transformers(model, names, expected):
    # Catches: the exact GELU for CLIP's, heads that are mixed, norms after instead of before, positions that are cut
    # instead of interpolated, pictures that are not normalised.
    weights = {name: jnp.asarray(value) for name, value in weights_of(names).items()}
    found = model(weights, jnp.asarray(PICTURES), size=SIZE, width_of_head=WIDTH // 2)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_weights_that_are_not_there_are_asked_for_by_name(tmp_path):
    # Catches: a traceback of the file system's, a name for another network's file, a silent fall-back to the judge.
    sentence = (
        r"features=clip needs weights, and no file is not there: download model.safetensors from "
        r"https://huggingface.co/openai/clip-vit-base-patch32 and give it as --config.evaluate.weights=FILE\."
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        features.load("clip", "")
    with pytest.raises(ValueError, match=r"dinov2 needs weights, and .*absent is not there: .*facebook/dinov2-small"):
        features.load("dinov2", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="features has 'clop', which cdisc does not know; did you mean 'clip'"):
        features.load("clop", "")
    save_file(weights_of(dinov2_names()), tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no weights")
    for name in ("other.safetensors", "text"):
        with pytest.raises(ValueError, match=rf"{name} has no weights of CLIP ViT-B/32's network .*: download"):
            features.load("clip", str(tmp_path / name))


def test_batches_do_not_show():
    # Catches: pictures lost or doubled at the end of a batch.
    def model(weights, pictures):
        return weights["w"] * pictures.reshape(pictures.shape[0], -1)

    extract = functools.partial(features._in_batches, model, {"w": jnp.float32(2.0)}, batch=4)
    for count in (1, 4, 9):
        pictures = jnp.arange(count * 3.0).reshape(count, 3)
        np.testing.assert_array_equal(extract(pictures), 2.0 * pictures)


def test_the_judges_features_are_called_so():
    judge = nearest_level_judge(("x",), ((0.0, 1.0),))
    found = features.judge_features(judge)
    assert found.label == "the judge's" and found.extract is judge.features
