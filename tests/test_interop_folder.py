"""Folders of diffusers and PEFT, read and written without either: keys, refusals, and what a file may lack."""

import dataclasses
import json
import pickle
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import safetensors.numpy
import tiny

from cdisc.errors import UserError
from cdisc.networks import denoiser, interop, lora, unet

NETWORK = dataclasses.replace(tiny.NETWORK, patch_size=1)
SCHEDULER = interop.SchedulerConfig(
    num_train_timesteps=100, beta_schedule="scaled_linear", beta_end=0.1, prediction_type="v_prediction", clip=None
)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(NETWORK)


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    interop.save(path, NETWORK, params, SCHEDULER)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of the network, to be changed at will."""
    return shutil.copytree(saved, tmp_path / "saved")


def _change(path, **options):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**content, **options}.items() if v != "left out"}))


def _weights(folder):
    return safetensors.numpy.load_file(folder / interop.WEIGHTS_FILE)


def _replace_weights(folder, weights):
    contiguous = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    safetensors.numpy.save_file(contiguous, folder / interop.WEIGHTS_FILE)


def _assert_equal(params, others):
    assert jax.tree.structure(params) == jax.tree.structure(others)
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_what_is_saved_is_loaded_bit_for_bit(folder, params):
    loaded = interop.load(folder)
    assert (loaded.network, loaded.scheduler) == (NETWORK, SCHEDULER)
    _assert_equal(loaded.params, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}


def test_a_pipeline_s_folder_is_loaded(folder, params):
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
    for file in (interop.NETWORK_FILE, interop.WEIGHTS_FILE):
        shutil.move(folder / file, folder / "unet")
    shutil.move(folder / interop.SCHEDULER_FILE, folder / "scheduler")
    loaded = interop.load(folder)
    assert (loaded.network, loaded.scheduler) == (NETWORK, SCHEDULER)
    _assert_equal(loaded.params, params)


def test_keys_and_axes_are_pytorch_s(folder, params):
    weights = _weights(folder)
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    assert len(weights) == len(flat)
    conv = weights["up_blocks.0.resnets.1.conv1.weight"]
    np.testing.assert_array_equal(conv[3, 5, 0, 2], flat["up_blocks_0/resnets_1/conv1/kernel"][0, 2, 5, 3])
    assert conv.shape == (16, 24, 3, 3)
    dense = weights["mid_block.resnets.0.time_emb_proj.weight"]
    np.testing.assert_array_equal(dense, np.asarray(flat["mid_block/resnets_0/time_emb_proj/kernel"]).T)
    np.testing.assert_array_equal(
        weights["mid_block.attentions.0.to_out.0.bias"], flat["mid_block/attentions_0/to_out_0/bias"]
    )
    np.testing.assert_array_equal(weights["conv_norm_out.weight"], flat["conv_norm_out/scale"])
    # The table is not turned, and the null class is its last row.
    np.testing.assert_array_equal(weights["class_embedding.weight"][-1], denoiser.null_embedding(params))
    assert "time_embedding.linear_2.weight" in weights


def test_attention_of_2022_is_loaded(folder, params):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, array in _weights(folder).items():
        for new, legacy in old.items():
            name = name.replace(f".{new}.", f".{legacy}.")
        weights[name] = array
    assert "mid_block.attentions.0.proj_attn.weight" in weights
    _replace_weights(folder, weights)
    _assert_equal(interop.load(folder).params, params)


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16, "float64"])
def test_other_precisions_become_float32(dtype, folder, params):
    _replace_weights(folder, {name: array.astype(dtype) for name, array in _weights(folder).items()})
    loaded = interop.load(folder).params
    _assert_equal(loaded, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(dtype), jnp.float32), params))


def test_every_wrong_key_is_named_at_once(folder):
    weights = _weights(folder)
    weights["mid_block.resnets.0.conv_1.weight"] = weights.pop("mid_block.resnets.0.conv1.weight")
    del weights["conv_in.bias"]
    weights["zzz"] = np.zeros(3, np.float32)
    weights["conv_out.weight"] = weights["conv_out.weight"][:, :, :1]
    weights["conv_out.bias"] = weights["conv_out.bias"].astype(np.int32)
    _replace_weights(folder, weights)
    with pytest.raises(UserError) as error:
        interop.load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / interop.WEIGHTS_FILE} does not hold the weights of config.json beside it: ")
    wrong = set(message.removesuffix(".").partition("beside it: ")[2].split(", '"))
    assert {part.lstrip("'") for part in wrong} == {
        "conv_in.bias' is missing",
        "mid_block.resnets.0.conv1.weight' is missing",
        "mid_block.resnets.0.conv_1.weight' (did you mean 'mid_block.resnets.0.conv1.weight'?) is not the network's",
        "zzz' is not the network's",
        "conv_out.weight' has the shape [3, 8, 1, 3] instead of [3, 8, 3, 3]",
        "conv_out.bias' holds I32 instead of floating-point numbers",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (interop.NETWORK_FILE, r"saved has no config\.json; did you mean 'scheduler_config\.json'\?$"),
        (interop.SCHEDULER_FILE, r"saved has no scheduler_config\.json; did you mean 'config\.json'\?$"),
        (interop.WEIGHTS_FILE, r"saved has no diffusion_pytorch_model\.safetensors: give a whole folder"),
    ],
)
def test_a_missing_file_is_named(name, message, folder):
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        interop.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is no folder"):
        interop.load(tmp_path / "nowhere")


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def test_pickled_weights_are_never_opened(folder):
    (folder / interop.WEIGHTS_FILE).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match=r"model\.bin is pickled.*: where diffusers is installed, write .* with UNet2D"):
        interop.load(folder)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_cut_file_is_refused(size, folder):
    path = folder / interop.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"safetensors is damaged or cut short \(.+\): copy it again"):
        interop.load(folder)


@pytest.mark.parametrize("name", [interop.NETWORK_FILE, interop.SCHEDULER_FILE])
@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ("[]", "holds no JSON object")])
def test_a_damaged_json_file_is_refused(name, text, message, folder):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} {message}"):
        interop.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_groups": 4}, r"does not know 'norm_groups' \(did you mean 'norm_num_groups'\?\)\.$"),
        ({"zzz": 1, "yyy": 1}, r"does not know 'zzz', 'yyy'\.$"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name has 'UNet2DConditionModel', .* did you mean 'UNet2DMo"),
        (
            {"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]},
            r"down_block_types has 'AttnSkipDownBlock2D', which cdisc does not know; did you mean 'AttnDownBlock2D'\?$",
        ),
        ({"up_block_types": ["AttnUpBlock2D", "KUp"]}, "up_block_types has 'KUp', .*: use one of UpBlock2D, AttnUpBl"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 blocks, but block_out_channels has 2"),
        ({"up_block_types": "UpBlock2D"}, r"up_block_types is 'UpBlock2D', which is not tuple\[str, \.\.\.\]"),
        ({"block_out_channels": [8, "16"]}, "block_out_channels is .*, which is not tuple"),
        ({"time_embedding_type": "learned"}, "time_embedding_type has 'learned', .*: use one of positional, fourier"),
        ({"class_embed_type": "projection"}, "class_embed_type has 'projection'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift has 'spatial'"),
        ({"act_fn": "gelu"}, "act_fn has 'gelu', which cdisc does not know: use one of silu, swish"),
        ({"mid_block_type": None}, "mid_block_type has None"),
        ({"norm_num_groups": 5}, "norm_num_groups is 5, which does not divide the 8 channels of level 0"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0: use whole numbers from 1 on"),
        ({"block_out_channels": [8, -16]}, r"block_out_channels is \(8, -16\): use whole numbers from 1 on"),
        ({"block_out_channels": []}, "block_out_channels is empty"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor is 0"),
        ({"freq_shift": 4}, "freq_shift is 4: it must be below half of the 8 channels"),
        ({"norm_num_groups": True}, "norm_num_groups is True, which is not int"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups is 5, which does not divide the 16 channels"),
        ({"attention_head_dim": 32}, "attention_head_dim is 32, more than the 16 channels of level 1"),
        ({"downsample_padding": 2}, "downsample_padding has 2"),
        ({"downsample_type": "pool"}, "downsample_type has 'pool'"),
        ({"upsample_type": "pool"}, "upsample_type has 'pool'"),
        ({"sample_size": 9}, "sample_size is 9: these levels and patches need a multiple of 2"),
        ({"sample_size": None}, "sample_size is missing"),
        ({"sample_size": [8, 16]}, r"sample_size is \[8, 16\], which is not int"),
        ({"patch_size": 2}, "patch_size is an option of cdisc's own"),
    ],
)
def test_an_option_of_the_network_that_cdisc_lacks_is_refused_by_name(options, message, folder):
    _change(folder / interop.NETWORK_FILE, **options)
    with pytest.raises(UserError, match=message) as error:
        interop.load(folder)
    assert str(error.value).startswith(f"{folder / interop.NETWORK_FILE}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "_class_name has 'ScoreSdeVeScheduler'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule has 'sigmoid', which cdisc does not know: use one of linear, sc"),
        ({"prediction_type": "v-prediction"}, r"prediction_type has 'v-prediction', .*; did you mean 'v_prediction'\?"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values, but num_train_timesteps is 100"),
        ({"variance_type": "learned_range"}, "variance_type has 'learned_range'"),
        ({"thresholding": True}, "thresholding has True"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr has True"),
        ({"beta_begin": 0.1}, r"does not know 'beta_begin' \(did you mean 'beta_end'\?\)"),
        ({"clip_sample": "yes"}, "clip_sample must be true or false"),
        ({"beta_end": 2}, "beta_end is 2: a beta lies between 0 and 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0: use whole numbers from 1 on"),
        ({"beta_end": "0.02"}, "beta_end is '0.02', which is not float"),
    ],
)
def test_an_option_of_the_scheduler_that_cdisc_lacks_is_refused_by_name(options, message, folder):
    _change(folder / interop.SCHEDULER_FILE, **options)
    with pytest.raises(UserError, match=message) as error:
        interop.load(folder)
    assert str(error.value).startswith(f"{folder / interop.SCHEDULER_FILE}: ")


def test_what_a_file_leaves_out_is_diffusers_default():
    network = interop.network_config({"sample_size": [32, 32]})
    assert network == unet.UNetConfig(
        sample_size=32,
        block_out_channels=(224, 448, 672, 896),
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
        layers_per_block=2,
    )
    assert interop.scheduler_config({}) == interop.SchedulerConfig()
    assert interop.scheduler_config({"_class_name": "PNDMScheduler"}).clip is None
    assert interop.scheduler_config({"clip_sample_range": 2.0}).clip == 2.0


def test_blocks_are_known_by_their_first_names():
    options = {"sample_size": 8, "block_out_channels": [32], "up_block_types": ["UNetResAttnUpBlock2D"]}
    network = interop.network_config({**options, "down_block_types": ["UNetResDownBlock2D"]})
    assert (network.down_block_types, network.up_block_types) == (("DownBlock2D",), ("AttnUpBlock2D",))


@pytest.mark.parametrize("name", published.NETWORKS)
def test_a_published_network_has_its_published_size(name):
    network = interop.network_config(published.NETWORKS[name])
    sizes = [int(np.prod(shape)) for _, shape in interop.layout(network).values()]
    assert sum(sizes) == published.PARAMETERS[name]
    assert interop.scheduler_config(published.SCHEDULER) == interop.SchedulerConfig()


def test_a_scheduler_s_betas_make_its_schedule():
    options = {"num_train_timesteps": 3, "beta_start": 0.01, "beta_end": 0.25}
    linear = interop.SchedulerConfig(**options).schedule()
    np.testing.assert_allclose(linear.alpha_bar, np.cumprod([1.0, 0.99, 0.87, 0.75]), rtol=1e-6)
    scaled = interop.SchedulerConfig(**options, beta_schedule="scaled_linear").schedule()
    np.testing.assert_allclose(scaled.alpha_bar, np.cumprod([1.0, 0.99, 0.91, 0.75]), rtol=1e-6)
    cosine = interop.SchedulerConfig(num_train_timesteps=3, beta_schedule="squaredcos_cap_v2").schedule()
    np.testing.assert_allclose(cosine.alpha_bar[3], 0.001 * cosine.alpha_bar[2], rtol=1e-5)
    trained = interop.SchedulerConfig(**options, trained_betas=(0.5, 0.2, 0.1)).schedule()
    np.testing.assert_allclose(trained.alpha_bar, [1.0, 0.5, 0.4, 0.36], rtol=1e-6)


def test_patches_are_exported_as_channels(tmp_path):
    # Catches: channels in the order of cdisc's own stem, at either end; a size that is still the picture's.
    whole = tiny.random_params()
    interop.save(tmp_path, tiny.NETWORK, whole, SCHEDULER)
    there = interop.load(tmp_path)
    assert (there.network.sample_size, there.network.in_channels, there.network.patch_size) == (4, 12, 1)

    def pixel_unshuffle(x):  # as PyTorch defines it: channel, then row, then column
        return x.reshape(2, 4, 2, 4, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(2, 4, 4, 12)

    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    t, labels = jnp.asarray([3, 70]), jnp.asarray([0, 3])
    out, folded = (
        denoiser.apply(network, params, jnp.asarray(x), t, denoiser.embed(params, labels))
        for network, params, x in ((tiny.NETWORK, whole, x), (there.network, there.params, pixel_unshuffle(x)))
    )
    np.testing.assert_allclose(folded, pixel_unshuffle(np.asarray(out)), atol=1e-5)


def test_parameters_of_another_network_are_not_written(params, tmp_path):
    more = dataclasses.replace(NETWORK, num_class_embeds=5)
    with pytest.raises(ValueError, match="not those of the network's options"):
        interop.save(tmp_path / "out", more, params, SCHEDULER)


def test_a_folder_that_cannot_be_written_is_named(params, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written \(.*\): choose another folder"):
        interop.save(tmp_path / "file", NETWORK, params, SCHEDULER)


def test_only_an_unconditional_network_is_a_pipeline(folder, params, tmp_path):
    assert not (folder / "model_index.json").exists()
    unconditional = {name: part for name, part in params.items() if name != "class_embedding"}
    interop.save(tmp_path / "free", dataclasses.replace(NETWORK, num_class_embeds=None), unconditional, SCHEDULER)
    index = json.loads((tmp_path / "free" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]


def test_an_adapted_unconditional_network_has_the_class_that_was_learnt(params, tmp_path):
    # Catches: a null class that is not the network itself, rows in the wrong order.
    network = dataclasses.replace(NETWORK, num_class_embeds=None)
    params = {name: part for name, part in params.items() if name != "class_embedding"}
    learnt = jnp.linspace(-1.0, 1.0, network.embedding_dim)
    interop.save(tmp_path, *denoiser.add_class(network, params, learnt), SCHEDULER)
    loaded = interop.load(tmp_path)
    np.testing.assert_array_equal(denoiser.class_table(loaded.params), learnt[None])
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 8, 3)), jnp.asarray([7])
    null = denoiser.null_embedding(loaded.params)[None]
    apply = jax.jit(denoiser.apply, static_argnums=0)
    np.testing.assert_array_equal(apply(loaded.network, loaded.params, x, t, null), apply(network, params, x, t))


def test_an_adapter_is_written_factor_by_factor(params, tmp_path):
    adapter = lora.init(params, jax.random.key(0), 3, 6.0)
    adapter = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), adapter)
    interop.save_adapter(tmp_path, NETWORK, adapter, jnp.arange(32.0))
    written = safetensors.numpy.load_file(tmp_path / interop.ADAPTER_FILE)
    assert len(written) == 2 * len(adapter.factors)
    for layer, path in (
        ("down_blocks.1.resnets.0.conv1", "down_blocks_1/resnets_0/conv1"),
        ("mid_block.attentions.0.to_out.0", "mid_block/attentions_0/to_out_0"),
    ):
        a, b = (np.asarray(written[f"base_model.model.{layer}.lora_{name}.weight"]) for name in "AB")
        # PEFT's product, out by in by pixels, is the kernel's change here.
        product = np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a)
        ours = np.asarray(adapter.factors[path]["a"] @ adapter.factors[path]["b"])
        np.testing.assert_allclose(product, np.transpose(ours, (3, 2, 0, 1) if ours.ndim == 4 else None), rtol=1e-5)
        assert b.ndim == a.ndim
    config = json.loads((tmp_path / interop.ADAPTER_CONFIG_FILE).read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (3, 6.0, len(adapter.factors))
    row = safetensors.numpy.load_file(tmp_path / interop.EMBEDDING_FILE)["class_embedding.weight"]
    np.testing.assert_array_equal(row, np.arange(32.0)[None])


@pytest.mark.parametrize("patch", [1, 2])
def test_a_written_adapter_is_what_separates_the_written_networks(tmp_path, patch):
    # Catches: channels of patches turned in the network and not in its adapter, or at one end alone; a bias that the
    # adapter would move; the scale left out, or applied twice.
    network = dataclasses.replace(tiny.NETWORK, patch_size=patch)
    whole, rng = tiny.random_params(network), np.random.default_rng(3)
    adapter = lora.init(whole, jax.random.key(0), 2, 5.0)
    adapter = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), adapter)
    interop.save(tmp_path / "base", network, whole, SCHEDULER)
    interop.save(tmp_path / "merged", network, lora.merge(whole, adapter), SCHEDULER)
    interop.save_adapter(tmp_path / "adapter", network, adapter, jnp.ones(32))
    base, merged = (safetensors.numpy.load_file(tmp_path / n / interop.WEIGHTS_FILE) for n in ("base", "merged"))
    factors = safetensors.numpy.load_file(tmp_path / "adapter" / interop.ADAPTER_FILE)
    config = json.loads((tmp_path / "adapter" / interop.ADAPTER_CONFIG_FILE).read_text())
    layers = {name.removesuffix(".weight") for name in base if base[name].any() and (merged[name] != base[name]).any()}
    assert layers == set(config["target_modules"]) and {"conv_in", "conv_out"} <= layers
    for layer in layers:
        a, b = (np.asarray(factors[f"base_model.model.{layer}.lora_{name}.weight"]) for name in "AB")
        product = np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a) * config["lora_alpha"] / config["r"]
        change = merged[f"{layer}.weight"] - base[f"{layer}.weight"]
        np.testing.assert_allclose(change, product, atol=1e-5, err_msg=layer)
    order = np.arange(3 * patch**2).reshape(patch, patch, 3).transpose(2, 0, 1).ravel()
    np.testing.assert_array_equal(merged["conv_out.bias"], np.asarray(whole["conv_out"]["bias"])[order])


@pytest.mark.parametrize("clip", [None, 1.0, 2.5])
def test_where_samplers_clip_travels_both_ways(params, tmp_path, clip):
    # Catches: a range that is not written, or written where nothing is clipped.
    interop.save(tmp_path, NETWORK, params, dataclasses.replace(SCHEDULER, clip=clip))
    assert interop.load_options(tmp_path)[1].clip == clip
    written = json.loads((tmp_path / interop.SCHEDULER_FILE).read_text())
    assert (written["clip_sample"], written.get("clip_sample_range")) == (clip is not None, clip)


def test_an_embedding_learnt_alone_is_written_alone(tmp_path):
    interop.save_adapter(tmp_path, NETWORK, lora.Adapter(), jnp.ones(32))
    assert [path.name for path in tmp_path.iterdir()] == [interop.EMBEDDING_FILE]


def test_an_embedding_for_each_block_is_a_class_row_and_a_rest_by_the_block_s_name(tmp_path):
    # Catches: another order of the blocks, the mean left in, a row in place of the mean.
    blocks = unet.residual_blocks(NETWORK)
    rows = jax.random.normal(jax.random.key(0), (len(blocks), 32))
    interop.save_adapter(tmp_path, NETWORK, lora.Adapter(), rows)
    shared = safetensors.numpy.load_file(tmp_path / interop.EMBEDDING_FILE)["class_embedding.weight"]
    np.testing.assert_allclose(shared, rows.mean(axis=0)[None], atol=1e-6)
    rest = safetensors.numpy.load_file(tmp_path / interop.BLOCKS_FILE)
    assert {"down_blocks.0.resnets.0", "mid_block.resnets.1", "up_blocks.1.resnets.1"} <= rest.keys()
    assert len(rest) == len(blocks)
    for block, row in zip(blocks, rows, strict=True):
        name = block.replace("resnets_", "resnets.").replace("blocks_", "blocks.").replace("/", ".")
        np.testing.assert_allclose(rest[name] + shared[0], row, atol=1e-6)
