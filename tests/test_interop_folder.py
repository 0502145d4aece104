"""Folders of diffusers and PEFT, read and written without either: keys, refusals, and what a file may lack."""

import dataclasses
import json
import pickle
import shutil
import time

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


def test_wrong_keys_of_every_kind_are_named(folder):
    weights = _weights(folder)
    weights["mid_block.resnets.0.conv_1.weight"] = weights.pop("mid_block.resnets.0.conv1.weight")
    del weights["conv_in.bias"]
    weights["zzz"] = np.zeros(3, np.float32)
    weights["conv_out.weight"] = weights["conv_out.weight"][:, :, :1]
    weights["conv_out.bias"] = weights["conv_out.bias"].astype(np.int32)
    _replace_weights(folder, weights)
    with pytest.raises(UserError) as error:
        interop.load(folder)
    wrong = str(error.value).partition("beside it. ")[2].removesuffix(".")
    assert str(error.value).startswith(f"{folder / interop.WEIGHTS_FILE} does not hold the weights of config.json")
    found = {what: set(names.split(", ")) for what, _, names in (part.partition(": ") for part in wrong.split("; "))}
    assert found == {
        "Missing": {"conv_in.bias", "mid_block.resnets.0.conv1.weight"},
        "not the network's": {
            "mid_block.resnets.0.conv_1.weight (did you mean 'mid_block.resnets.0.conv1.weight'?)",
            "zzz",
        },
        "of another shape": {"conv_out.weight [3", "8", "1", "3] instead of [3", "3", "3]"},
        "of another type": {"conv_out.bias I32 instead of F64 or F32 or F16 or BF16"},
    }


def test_many_wrong_keys_are_counted_and_named_in_little_time(folder):
    # Catches: a message of every key, and the nearest name sought for each of them.
    _replace_weights(folder, {f"other.{name}.weight": np.zeros(3, np.float32) for name in range(3000)})
    start = time.process_time()
    with pytest.raises(UserError, match=r"Missing: [^;]*, and \d+ more; not .*, and 2995 more\.$") as error:
        interop.load(folder)
    assert len(str(error.value)) < 1000
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            interop.NETWORK_FILE,
            r"saved has no config\.json: give the folder of a UNet2DModel, or of",
        ),
        (interop.SCHEDULER_FILE, r"saved has no scheduler_config\.json, .*: write .*saved/scheduler_config\.json with"),
        (
            interop.WEIGHTS_FILE,
            r"saved has no diffusion_pytorch_model\.safetensors: copy it from where the",
        ),
    ],
)
def test_a_missing_file_is_named(name, message, folder):
    (folder / name).unlink()
    with pytest.raises(UserError, match=message):
        interop.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder: .*what lies on a hub is downloaded first"):
        interop.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, and a folder is wanted"):
        interop.load(tmp_path / "file")


class _Bomb:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def test_pickled_weights_are_never_opened(folder):
    (folder / interop.WEIGHTS_FILE).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(UserError, match=r"model\.bin is pickled.*: .*write .* with UNet2DModel"):
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
        ({"norm_groups": 4}, r"does not know 'norm_groups', and it could matter: take out what does not\.$"),
        ({"zzz": 1, "yyy": 1}, r"does not know 'zzz', 'yyy', and"),
        ({f"option_{i}": i for i in range(2000)}, r"does not know 'option_0', .*'option_4', and 1995 more, and"),
        ({"_class_name": "UNet2DConditionModel"}, r"it is of a 'UNet2DConditionModel': cdisc reads UNet2DModel\.$"),
        (
            {"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]},
            r"down_block_types has 'AttnSkipDownBlock2D', .*: it has DownBlock2D, AttnDownBlock2D, ResnetDownsampleB",
        ),
        ({"up_block_types": ["AttnUpBlock2D", "KUp"]}, "up_block_types has 'KUp', .*: it has UpBlock2D, AttnUpBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types has 1 blocks, but block_out_channels has 2"),
        ({"up_block_types": "UpBlock2D"}, r"up_block_types is 'UpBlock2D', which is not tuple\[str, \.\.\.\]"),
        ({"block_out_channels": [8, "16"]}, "block_out_channels is .*, which is not tuple"),
        ({"time_embedding_type": "learned"}, "time_embedding_type has 'learned', .*: use one of positional, fourier"),
        ({"class_embed_type": "projection"}, "class_embed_type has 'projection'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift has 'spatial'"),
        ({"act_fn": "gelu"}, r"act_fn is 'gelu', which cdisc does not have: it has silu, swish\.$"),
        ({"act_fn": "mish"}, r"act_fn is 'mish', which cdisc does not have: it has silu, swish\.$"),
        ({"mid_block_type": None}, "mid_block_type is None, .*: it has UNetMidBlock2D"),
        ({"norm_eps": float("nan")}, "norm_eps is nan, which is not float"),
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
        ({"sample_size": [8, 9]}, r"sample_size is \(8, 9\): these levels and patches need a multiple of 2"),
        ({"sample_size": [8, 8, 8]}, r"sample_size is \(8, 8, 8\): give a side, or height and width"),
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
        ({"_class_name": "ScoreSdeVeScheduler"}, "it is of a 'ScoreSdeVeScheduler': cdisc reads DDPMScheduler, DDIM"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule has 'sigmoid', which cdisc does not have: it has linear, sc"),
        # Catches: another process called a mistyped name of one that is there.
        (
            {"prediction_type": "flow_prediction"},
            r"'flow_prediction', which cdisc does not have: it has ep\w+, v\w+, s\w+\.$",
        ),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000: use at most 1000000"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values, but num_train_timesteps is 100"),
        ({"variance_type": "learned_range"}, "variance_type has 'learned_range'"),
        ({"thresholding": True}, "thresholding is True, which cdisc does not have: it has False"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"timestep_spacing": "uneven"}, "timestep_spacing has 'uneven'"),
        ({"beta_begin": 0.1}, r"does not know 'beta_begin', and it could matter"),
        ({"predict_epsilon": False}, "predict_epsilon is false and prediction_type 'v_prediction', which contradict"),
        ({"predict_epsilon": "no"}, "predict_epsilon must be true or false"),
        ({"clip_sample": True, "clip_sample_range": -1.0}, "clip_sample_range is -1.0: samples are clipped to a posit"),
        ({"clip_sample_range": float("inf")}, "clip_sample_range a number"),
        ({"beta_start": float("nan")}, "beta_start is nan, which is not float"),
        ({"trained_betas": [2.0] * 100}, r"trained_betas is \(2.0, .*\.\.\.\): a beta lies between 0 and 1"),
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
    leading = interop.SchedulerConfig(timestep_spacing="leading")
    assert interop.scheduler_config({}) == leading
    other = interop.scheduler_config({"_class_name": "PNDMScheduler"})
    assert (other.clip, other.set_alpha_to_one, other.sampler) == (None, False, "PNDMScheduler")
    other = interop.scheduler_config({"_class_name": "HeunDiscreteScheduler"})
    assert (other.clip, other.timestep_spacing, other.beta_start, other.beta_end) == (None, "linspace", 0.00085, 0.012)
    assert interop.scheduler_config({"clip_sample_range": 2.0}).clip == 2.0


def test_a_null_is_the_default_or_false_where_that_is_meant():
    # Catches: null refused, or taken for true where Python takes it for false.
    written = {"num_train_timesteps": None, "beta_start": None, "prediction_type": None, "clip_sample_range": None}
    assert interop.scheduler_config({**written, "trained_betas": None, "thresholding": None}) == (
        interop.SchedulerConfig(timestep_spacing="leading")
    )
    off = interop.scheduler_config({"clip_sample": None, "set_alpha_to_one": None, "timestep_spacing": None})
    assert off == interop.SchedulerConfig(clip=None, set_alpha_to_one=False, timestep_spacing="leading")
    given = {"sample_size": 32, "norm_eps": None, "act_fn": None, "block_out_channels": None, "add_attention": None}
    network = interop.network_config({**given, "flip_sin_to_cos": None, "attention_head_dim": None})
    assert network == dataclasses.replace(
        interop.network_config({"sample_size": 32}), add_attention=False, flip_sin_to_cos=False, attention_head_dim=None
    )


def test_what_2022_wrote_of_the_prediction_is_followed():
    for value, expected in ((True, "epsilon"), (False, "sample"), (None, "epsilon")):
        found = interop.scheduler_config({"_diffusers_version": "0.8.0", "predict_epsilon": value})
        assert found.prediction_type == expected
    assert interop.scheduler_config({"predict_epsilon": False, "prediction_type": "sample"}).prediction_type == "sample"


@pytest.mark.parametrize(
    "left",
    [
        {"interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "use_karras_sigmas": False},
        {"predict_x0": True, "disable_corrector": [], "solver_p": None, "solver_type": "bh2", "sigma_max": 80.0},
        {"skip_prk_steps": True, "tensor_format": "pt", "timestep_values": None},
        {"lambda_min_clipped": float("-inf"), "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"},
        {"variance_type": None, "dynamic_thresholding_ratio": 0.995, "use_flow_sigmas": False, "flow_shift": 1.0},
    ],
)
def test_what_another_scheduler_left_in_a_file_changes_nothing(left, folder):
    # JSON as Python writes it has -Infinity.
    before = interop.load_options(folder)[1]
    _change(folder / interop.SCHEDULER_FILE, _class_name="DDIMScheduler", **left)
    assert interop.load_options(folder)[1] == before


def test_what_an_average_left_in_a_network_s_file_changes_nothing(folder):
    average = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 100, "update_after_step": 0}
    _change(folder / interop.NETWORK_FILE, **average, use_ema_warmup=True, inv_gamma=1.0, power=0.75, dropout=0.1)
    assert interop.load_options(folder)[0] == NETWORK


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"variance_type": "fixed_large", "clip_sample": True, "clip_sample_range": 3.0}, ("fixed_large", 3.0)),
        ({"variance_type": "fixed_large_log", "clip_sample": False, "clip_sample_range": 3.0}, ("fixed_large", None)),
        ({"variance_type": "fixed_small_log", "clip_sample": True}, ("fixed_small", 1.0)),
    ],
)
def test_how_samples_are_drawn_is_the_file_s(written, expected, folder):
    path = {"timestep_spacing": "linspace", "steps_offset": 1, "set_alpha_to_one": False}
    _change(folder / interop.SCHEDULER_FILE, **written, **path)
    found = interop.load_options(folder)[1]
    assert (found.variance_type, found.clip) == expected
    assert (found.timestep_spacing, found.steps_offset, found.set_alpha_to_one) == ("linspace", 1, False)


INDEX = f"{interop.WEIGHTS_FILE}.index.json"


def _split(folder, pattern="diffusion_pytorch_model-{}-of-00002.safetensors", index=INDEX):
    """The weights of a folder in two files with an index, which is returned."""
    weights = _weights(folder)
    (folder / interop.WEIGHTS_FILE).unlink()
    place = {name: pattern.format(f"0000{1 + i % 2}") for i, name in enumerate(sorted(weights))}
    for file in set(place.values()):
        safetensors.numpy.save_file({name: weights[name] for name in place if place[name] == file}, folder / file)
    content = {"metadata": {"total_size": 1}, "weight_map": place}
    (folder / index).write_text(json.dumps(content))
    return content


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("diffusion_pytorch_model.fp16-{}-of-00002.safetensors", f"{interop.WEIGHTS_FILE}.index.fp16.json"),
        ("diffusion_pytorch_model-{}-of-00002.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors.index.json"),
    ],
)
def test_weights_in_several_files_are_loaded(names, folder, params):
    _split(folder, *names)
    _assert_equal(interop.load(folder).params, params)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda place: place.pop("conv_in.weight"), r"index\.json does not hold .* Missing: conv_in\.weight\.$"),
        (
            lambda place: place.update({"conv_in.weight": "../x.safetensors"}),
            r"weight_map has '\.\./x\.safetensors'",
        ),
        (lambda place: place.update({"conv_in.weight": "x.safetensors"}), r"has no x\.safetensors, which diff.* names"),
        (
            lambda place: place.update(
                {"conv_in.weight": place["conv_in.bias"], "conv_in.bias": place["conv_in.weight"]}
            ),
            r"does not fit the files that it names \(conv_in\.(weight|bias) is not in ",
        ),
        (lambda place: place.clear(), "weight_map is missing"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(damage, message, folder):
    content = _split(folder)
    damage(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        interop.load(folder)


def test_a_variant_is_taken_where_it_is_alone(folder, params):
    # Catches: half precision where there is full, or a choice among several.
    half = {name: array.astype("float16") for name, array in _weights(folder).items()}
    safetensors.numpy.save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    _assert_equal(interop.load(folder).params, params)
    (folder / interop.WEIGHTS_FILE).unlink()
    rounded = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, "float16"), jnp.float32), params)
    _assert_equal(interop.load(folder).params, rounded)
    safetensors.numpy.save_file(half, folder / "diffusion_pytorch_model.non_ema.safetensors")
    with pytest.raises(
        UserError, match=r"has .*fp16\.safetensors, .*non_ema\.safetensors: leave the one that is meant"
    ):
        interop.load(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"saved has no diffusion_pytorch_model\.safetensors: copy it"),
        (lambda file: (file.unlink(), file.mkdir()), "copy it"),
        (lambda file: (file.unlink(), file.symlink_to("../../blobs/gone")), "copy it"),
        (
            lambda file: file.rename(file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors")),
            r"00001-of-00002\.safetensors without their index: copy diffusion_pytorch_model\.safetensors\.index\.json",
        ),
    ],
)
def test_weights_that_are_not_there(damage, message, folder):
    # Catches: a traceback for a link of a hub's cache whose blob was removed.
    damage(folder / interop.WEIGHTS_FILE)
    with pytest.raises(UserError, match=message):
        interop.load(folder)


def test_whole_weights_beside_an_index_are_not_chosen_among(folder):
    shutil.copy(folder / interop.WEIGHTS_FILE, folder / "whole")
    _split(folder)
    shutil.move(folder / "whole", folder / interop.WEIGHTS_FILE)
    with pytest.raises(UserError, match="leave the one that is meant"):
        interop.load(folder)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"unet.{name}",
        lambda name: f"model.module.{name}",
        lambda name: name.replace("mid_block.", "mid_block._orig_mod."),
    ],
)
def test_names_are_taken_out_of_their_wrappers(wrapped, folder, params):
    _replace_weights(folder, {wrapped(name): array for name, array in _weights(folder).items()})
    _assert_equal(interop.load(folder).params, params)


def test_a_tensor_with_and_without_its_wrapper_is_refused(folder):
    weights = _weights(folder)
    _replace_weights(folder, {**weights, "module.conv_in.bias": weights["conv_in.bias"] + 1.0})
    with pytest.raises(UserError, match="holds tensors twice, with a wrapper's prefix and without"):
        interop.load(folder)


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float16", np.inf), ("float64", 1e300)])
def test_weights_that_are_not_finite_are_refused(dtype, value, folder):
    weights = {name: array.astype(dtype) for name, array in _weights(folder).items()}
    weights["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    _replace_weights(folder, weights)
    with pytest.raises(UserError, match=r"mid_block\.resnets\.0\.conv1\.weight has values that are not finite"):
        interop.load(folder)


def test_a_pointer_of_git_lfs_is_called_what_it_is(folder):
    (folder / interop.WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="stands for a file of Git LFS: run 'git lfs pull'"):
        interop.load(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_may_begin_with_a_byte_order_mark(encoding, folder):
    for name in (interop.NETWORK_FILE, interop.SCHEDULER_FILE):
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    assert interop.load_options(folder) == (NETWORK, SCHEDULER)


def _pipeline(folder):
    """A folder of a network, made that of a pipeline."""
    for name in ("unet", "scheduler"):
        (folder / name).mkdir()
    for file in (interop.NETWORK_FILE, interop.WEIGHTS_FILE):
        shutil.move(folder / file, folder / "unet")
    shutil.move(folder / interop.SCHEDULER_FILE, folder / "scheduler")
    return folder


def test_the_scheduler_of_a_network_s_folder_is_looked_for_beside_it(folder):
    _pipeline(folder)
    assert interop.load_options(folder / "unet") == (NETWORK, SCHEDULER)
    (folder / "checkpoint-5").mkdir()
    shutil.move(folder / "unet", folder / "checkpoint-5")
    for given in ("checkpoint-5", "checkpoint-5/unet"):
        assert interop.load_options(folder / given) == (NETWORK, SCHEDULER)
    shutil.move(folder / "scheduler" / interop.SCHEDULER_FILE, folder / "checkpoint-5")
    for given in ("checkpoint-5", "checkpoint-5/unet"):
        assert interop.load_options(folder / given) == (NETWORK, SCHEDULER)


def test_the_folder_s_own_scheduler_comes_first(folder):
    shutil.copytree(folder, folder / "unet")
    _change(folder / "unet" / interop.SCHEDULER_FILE, num_train_timesteps=50)
    (folder / "scheduler").mkdir()
    shutil.move(folder / interop.SCHEDULER_FILE, folder / "scheduler")
    assert interop.load_options(folder)[1].num_train_timesteps == 100
    assert interop.load_options(folder / "unet")[1].num_train_timesteps == 50


@pytest.mark.parametrize("part", ["vae", "vqvae", "movq"])
@pytest.mark.parametrize("as_written", ["folder", "index"])
def test_a_network_of_latents_is_refused(part, as_written, folder):
    # Catches: only the folder looked at, or only the pipeline's own folder given.
    _pipeline(folder)
    if as_written == "folder":
        (folder / part).mkdir()
    else:
        entry = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], part: ["diffusers", "VQModel"]}
        (folder / "model_index.json").write_text(json.dumps(entry))
    for given in (folder, folder / "unet"):
        with pytest.raises(UserError, match=f"saved is a pipeline of latent diffusion: its {part} makes the pictures"):
            interop.load_options(given)


def test_other_parts_of_a_pipeline_do_not_matter(folder):
    _pipeline(folder)
    parts = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "vae": [None, None],
        "mel": ["a", "Mel"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts))
    assert interop.load_options(folder) == (NETWORK, SCHEDULER)


def test_a_hub_s_cache_stands_for_its_snapshot(folder, params, tmp_path):
    cache = tmp_path / "models--someone--network"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for i, file in enumerate(folder.iterdir()):
        shutil.move(file, cache / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    _assert_equal(interop.load(cache).params, params)
    (cache / "snapshots" / "older").mkdir()
    with pytest.raises(UserError, match="snapshots has 2 snapshots that could be meant: give the folder of one"):
        interop.load(cache)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    _assert_equal(interop.load(cache).params, params)
    (cache / "refs" / "main").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="has 0 snapshots that could be meant"):
        interop.load(cache)


def test_a_tilde_is_the_home_folder(folder, params, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    _assert_equal(interop.load("~/saved").params, params)
    with pytest.raises(UserError, match="~nobody-of-that-name/x is no folder"):
        interop.load("~nobody-of-that-name/x")


def test_pictures_may_be_rectangular_and_grey(tmp_path):
    """With kernels and pictures turned, the prediction is turned."""
    # Catches: height and width exchanged, or one taken for both.
    options = {"num_class_embeds": None, "add_attention": False, "patch_size": 1, "sample_size": (8, 16)}
    network = dataclasses.replace(tiny.ONE_LEVEL, in_channels=1, out_channels=1, **options)
    params = tiny.random_params(network)
    interop.save(tmp_path, network, params, SCHEDULER)
    assert json.loads((tmp_path / interop.NETWORK_FILE).read_text())["sample_size"] == [8, 16]
    loaded = interop.load(tmp_path)
    assert (loaded.network, loaded.network.picture_shape) == (network, (8, 16, 1))
    turned = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1) if leaf.ndim == 4 else leaf, loaded.params)
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 16, 1)), jnp.asarray([7])
    apply = jax.jit(denoiser.apply, static_argnums=0)
    out, other = apply(network, loaded.params, x, t), apply(network, turned, x.swapaxes(1, 2), t)
    assert out.shape == (1, 8, 16, 1)
    np.testing.assert_allclose(out, other.swapaxes(1, 2), atol=1e-5)


def test_blocks_are_known_by_their_first_names():
    options = {"sample_size": 8, "block_out_channels": [32], "up_block_types": ["UNetResAttnUpBlock2D"]}
    network = interop.network_config({**options, "down_block_types": ["UNetResDownBlock2D"]})
    assert (network.down_block_types, network.up_block_types) == (("DownBlock2D",), ("AttnUpBlock2D",))


@pytest.mark.parametrize("name", published.NETWORKS)
def test_a_published_network_has_its_published_size(name):
    network = interop.network_config(published.NETWORKS[name])
    sizes = [int(np.prod(shape)) for _, shape in interop.layout(network).values()]
    assert sum(sizes) == published.PARAMETERS[name]
    assert interop.scheduler_config(published.SCHEDULER) == interop.SchedulerConfig(timestep_spacing="leading")


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


def test_a_written_adapter_is_read_back(params, tmp_path):
    # Catches: axes turned one way alone, the scale lost, blocks in another order.
    adapter = lora.init(params, jax.random.key(0), 3, 6.0)
    adapter = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), adapter)
    rows = jax.random.normal(jax.random.key(1), (len(unet.residual_blocks(NETWORK)), 32))
    for embedding in (rows[0], rows):
        interop.save_adapter(tmp_path, NETWORK, adapter, embedding)
        again, row = interop.load_adapter(tmp_path, NETWORK)
        assert again.scale == adapter.scale
        _assert_equal(again.factors, adapter.factors)
        np.testing.assert_allclose(row, embedding, atol=1e-6)


def test_an_adapter_of_patches_is_read_back(tmp_path):
    params = tiny.random_params()
    adapter = lora.init(params, jax.random.key(0), 2, 6.0)
    adapter = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), adapter)
    interop.save_adapter(tmp_path, tiny.NETWORK, adapter, jnp.ones(32))
    _assert_equal(interop.load_adapter(tmp_path, tiny.NETWORK)[0].factors, adapter.factors)


def test_a_class_alone_is_an_adapter_without_factors(tmp_path):
    interop.save_adapter(tmp_path, NETWORK, lora.Adapter(), jnp.arange(32.0))
    adapter, embedding = interop.load_adapter(tmp_path, NETWORK)
    assert adapter == lora.Adapter()
    np.testing.assert_array_equal(embedding, jnp.arange(32.0))


def _peft(folder, tensors, **options):
    """An adapter as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", **options}
    (folder / interop.ADAPTER_CONFIG_FILE).write_text(json.dumps(content))
    safetensors.numpy.save_file(
        {f"base_model.model.{name}.weight": np.asarray(array, np.float32) for name, array in tensors.items()},
        folder / interop.ADAPTER_FILE,
    )
    return folder


DENSE = {"mid_block.attentions.0.to_q.lora_A": np.ones((2, 16)), "mid_block.attentions.0.to_q.lora_B": np.ones((16, 2))}
CONV = {
    "conv_out.lora_A": np.arange(72.0).reshape(1, 8, 3, 3),
    "conv_out.lora_B": np.arange(3.0).reshape(3, 1, 1, 1),
}


@pytest.mark.parametrize(
    ("options", "dense", "conv"),
    [
        ({}, 3.0, 6.0),
        ({"use_rslora": True}, 6 / 2**0.5, 6.0),
        ({"alpha_pattern": {"conv_out": 5}}, 3.0, 5.0),
        ({"alpha_pattern": {"attentions.*": 8, "to_q": 1}}, 4.0, 6.0),
        ({"rank_pattern": {"conv_out": 1}, "target_modules": "all-linear", "modules_to_save": None}, 3.0, 6.0),
        ({"lora_alpha": 0}, 0.0, 0.0),
    ],
)
def test_an_adapter_of_peft_is_what_peft_adds(options, dense, conv, params, tmp_path):
    # Catches: one scale for layers of two ranks or alphas; the second pattern that fits taken.
    adapter, embedding = interop.load_adapter(_peft(tmp_path / "peft", DENSE | CONV, **options), NETWORK)
    assert embedding is None
    merged = flax.traverse_util.flatten_dict(lora.merge(params, adapter), sep="/")
    before = flax.traverse_util.flatten_dict(params, sep="/")
    changes = {name: np.asarray(merged[name] - before[name]) for name in before if (merged[name] != before[name]).any()}
    expected = {"mid_block/attentions_0/to_q/kernel": dense * 2 * np.ones((16, 16))} if dense else {}
    kernel = conv * np.arange(72.0).reshape(8, 3, 3).transpose(1, 2, 0)[..., None] * np.arange(3.0)
    expected |= {"conv_out/kernel": kernel} if conv else {}
    assert changes.keys() == expected.keys()
    for name, change in changes.items():
        np.testing.assert_allclose(change, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "tensors", "message"),
    [
        ({"peft_type": "LOHA"}, DENSE, r"adapter_config\.json: peft_type is 'LOHA', which cdisc does not have"),
        ({"use_dora": True}, DENSE, r"cdisc does not have use_dora: train an adapter without"),
        ({"modules_to_save": ["conv_in"]}, DENSE, r"cdisc does not have modules_to_save"),
        ({"bias": "all"}, DENSE, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, DENSE, "init_lora_weights is 'pissa'"),
        ({"lora_alpha": "8"}, DENSE, "lora_alpha must be a number"),
        ({"lora_alpha": float("nan")}, DENSE, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(": 8}}, DENSE, "alpha_pattern has what is no regular expression"),
        ({}, {"mid.lora_A": np.ones((2, 16))}, r"factors that are not of the network's kernels: mid\.lora_A\.weight"),
        ({}, {"conv_in.lora_A": np.ones((2, 3, 3, 3))}, "not of the network's kernels: conv_in"),
        ({}, CONV | {"conv_out.lora_B": np.ones((3, 2, 1, 1))}, "not of the network's kernels: conv_out"),
        (
            {},
            CONV | {"conv_out.lora_A": np.full((1, 8, 3, 3), np.nan)},
            r"lora_A\.weight has values that are not finite",
        ),
        # Catches: factors of a norm, or none, or one of two of a layer, left out without a word.
        (
            {},
            DENSE | {"conv_norm_out.lora_A": np.ones((2, 8)), "conv_norm_out.lora_B": np.ones((8, 2))},
            r"not of the network's kernels: conv_norm_out\.lora_A\.weight, conv_norm_out\.lora_B",
        ),
        ({}, {}, "holds no tensor"),
        ({}, DENSE | {f"module.{name}": array for name, array in DENSE.items()}, "holds tensors twice"),
    ],
)
def test_an_adapter_that_is_no_lora_of_the_network_is_refused(options, tensors, message, tmp_path):
    with pytest.raises(UserError, match=message):
        interop.load_adapter(_peft(tmp_path / "peft", tensors, **options), NETWORK)


def test_factors_are_no_whole_numbers(tmp_path):
    # Catches: a quantised adapter whose numbers are taken as they are.
    _peft(tmp_path / "peft", DENSE)
    whole = {f"base_model.model.{name}.weight": array.astype(np.int8) for name, array in DENSE.items()}
    safetensors.numpy.save_file(whole, tmp_path / "peft" / interop.ADAPTER_FILE)
    with pytest.raises(UserError, match="holds int8: give one of F64"):
        interop.load_adapter(tmp_path / "peft", NETWORK)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (interop.ADAPTER_CONFIG_FILE, r"peft has no adapter_config\.json: give the folder of an adapter"),
        (interop.ADAPTER_FILE, r"peft has no adapter_model\.safetensors: copy it"),
    ],
)
def test_a_missing_file_of_an_adapter_is_named(missing, message, tmp_path):
    (_peft(tmp_path / "peft", DENSE) / missing).unlink()
    with pytest.raises(UserError, match=message):
        interop.load_adapter(tmp_path / "peft", NETWORK)
