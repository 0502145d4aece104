"""Networks, samplers and adapters against diffusers and PEFT themselves; skipped where those are not installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import tiny

from cdisc.diffusion import sampling
from cdisc.networks import backbone, denoiser, interop, lora

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
safetensors_torch = pytest.importorskip("safetensors.torch")

BASE = {
    "sample_size": 8,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
ATTEND = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
RESNET = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
CONFIGS = {
    "as published": {
        **ATTEND,
        "layers_per_block": 2,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 1,
    },
    "heads that leave channels over": {**ATTEND, "block_out_channels": (6, 10), "attention_head_dim": 4},
    "odd channels": {**ATTEND, "block_out_channels": (5, 9), "norm_num_groups": 1, "attention_head_dim": 3},
    "three levels, middle without attention": {
        "block_out_channels": (4, 6, 4),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    },
    "one level": {
        "block_out_channels": (6,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("ResnetUpsampleBlock2D",),
        "norm_num_groups": 3,
    },
    "residual resampling": {**RESNET, "dropout": 0.3},
    "scale and shift, middle without norm": {**RESNET, "resnet_time_scale_shift": "scale_shift"},
    "scale and shift, all residual": {
        **ATTEND,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "another norm in the middle": {"attn_norm_num_groups": 8, "norm_eps": 1e-2, "norm_num_groups": 1},
    "Fourier": {**ATTEND, "time_embedding_type": "fourier"},
    "classes from a table": {**ATTEND, "num_class_embeds": 3, "in_channels": 2, "out_channels": 5},
    "a class as a number": {"class_embed_type": "timestep", "time_embedding_dim": 12},
    "a class as a number, Fourier": {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    "a class as a vector": {"class_embed_type": "identity", "center_input_sample": True},
    "a scaled middle": {**ATTEND, "mid_block_scale_factor": 1.7, "attention_head_dim": 4, "act_fn": "swish"},
}


def _randomise(model):
    """Numbers everywhere: what starts at zero would hide what comes before it."""
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim > 1 and not name.startswith("class_embedding.weight"):
                values /= np.sqrt(np.prod(parameter.shape[1:]))
            elif "norm" in name and name.endswith("weight"):
                values = 1.0 + 0.3 * values
            elif name != "time_proj.weight":
                values *= 0.3
            parameter.copy_(torch.tensor(values))
    return model.eval()


def _saved(folder, options, **scheduler):
    """A network of diffusers with random weights, and what is read back from the folder where it was saved."""
    model = _randomise(diffusers.UNet2DModel(**options))
    model.save_pretrained(folder)
    diffusers.DDPMScheduler(**scheduler).save_pretrained(folder)
    return model, interop.load(folder)


def _torch(x):
    """A picture (B, H, W, C) as PyTorch has it."""
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def _numpy(x):
    return x.detach().permute(0, 2, 3, 1).numpy()


def _error(ours, theirs):
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def _inputs(network):
    """Two pictures with timesteps in diffusers' count, and labels; all exact in float32."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, network.sample_size, network.sample_size, network.in_channels)).astype(np.float32)
    t = np.asarray([2, 37] if network.time_embedding_type == "fourier" else [0, 701])
    labels = {
        None: np.asarray([0, 2]),
        "timestep": np.asarray([1, 30]),
        "identity": rng.standard_normal((2, network.embedding_dim)).astype(np.float32),
    }[network.class_embed_type]
    conditional = network.class_embed_type is not None or network.num_class_embeds is not None
    return x, t, labels if conditional else None


def _apply(network, params, x, t, labels):
    """The network as cdisc calls it, with timesteps from 1."""
    embeddings = None
    if labels is not None:
        if network.class_embed_type == "identity":
            embeddings = labels
        elif network.class_embed_type == "timestep":
            embeddings = denoiser.embed_number(network, params, labels)
        else:
            embeddings = denoiser.embed(params, labels)
    return denoiser.apply(network, params, x, t + 1, embeddings)


def _forward(model, x, t, labels):
    return model(x, torch.tensor(t), None if labels is None else torch.tensor(labels)).sample


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def pair(request, tmp_path):
    """A network of each kind, there and here."""
    return _saved(tmp_path, {**BASE, **CONFIGS[request.param]})


def test_the_forward_pass_is_diffusers(pair):
    model, here = pair
    x, t, labels = _inputs(here.network)
    with torch.no_grad():
        expected = _numpy(_forward(model, _torch(x), t, labels))
    out = jax.jit(lambda params: _apply(here.network, params, x, t, labels))(here.params)
    print(f"parity {_error(out, expected):.1e}")
    assert _error(out, expected) < 2e-5


@pytest.mark.parametrize("name", ["as published", "scale and shift, all residual"])
def test_the_gradient_with_respect_to_the_input_is_diffusers(name, tmp_path):
    model, here = _saved(tmp_path, {**BASE, **CONFIGS[name]})
    x, t, labels = _inputs(here.network)
    weights = np.random.default_rng(3).standard_normal(x.shape).astype(np.float32)
    there = _torch(x).requires_grad_()
    (_forward(model, there, t, labels) * _torch(weights)).sum().backward()
    loss = jax.jit(jax.grad(lambda x: jnp.sum(_apply(here.network, here.params, x, t, labels) * weights)))
    print(f"parity {_error(loss(x), _numpy(there.grad)):.1e}")
    assert _error(loss(x), _numpy(there.grad)) < 2e-5


def test_import_export_import_is_bit_for_bit(pair, tmp_path):
    model, here = pair
    interop.save(tmp_path / "again", here.network, here.params, here.scheduler)
    again = interop.load(tmp_path / "again")
    assert again.network == here.network
    assert again.scheduler == here.scheduler
    assert jax.tree.structure(again.params) == jax.tree.structure(here.params)
    for leaf, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(here.params), strict=True):
        np.testing.assert_array_equal(leaf, other)
    # The same folder, read by diffusers.
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "again")
    options, there = (
        {name: list(value) if isinstance(value, tuple) else value for name, value in one.config.items()}
        for one in (back, model)
    )
    same = {name for name in there if name[0] != "_"} - {"act_fn", "dropout"}
    assert {name: options[name] for name in same} == {name: there[name] for name in same}
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", published.NETWORKS)
def test_the_layout_of_a_published_network_is_diffusers(name):
    """Every key and shape, and nothing allocated: on the one side a shape, on the other a meta tensor."""
    options = published.NETWORKS[name]
    with torch.device("meta"):
        model = diffusers.UNet2DModel(**{k: v for k, v in options.items() if k[0] != "_"})
    assert sum(p.numel() for p in model.parameters()) == published.PARAMETERS[name]
    network = interop.network_config(options)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: shape for name, (_, shape) in interop.layout(network).items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", published.NETWORKS)
def test_the_forward_pass_of_a_published_network_is_diffusers(name, tmp_path):
    options = {k: v for k, v in published.NETWORKS[name].items() if k[0] != "_"}
    model, here = _saved(tmp_path, options)
    x, t, _ = _inputs(here.network)
    x, t = x[:1], t[1:]
    with torch.no_grad():
        expected = _numpy(_forward(model, _torch(x), t, None))
    out = jax.jit(lambda params: _apply(here.network, params, x, t, None))(here.params)
    print(f"parity {_error(out, expected):.1e}")
    assert _error(out, expected) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.2},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.15], "num_train_timesteps": 3},
    ],
    ids=["linear", "short", "scaled_linear", "squaredcos_cap_v2", "trained"],
)
def test_schedules_are_diffusers(options):
    scheduler = diffusers.DDPMScheduler(**options)
    here = interop.scheduler_config(scheduler.config).schedule()
    # PyTorch's running product is in float32.
    np.testing.assert_allclose(here.alpha_bar[1:], scheduler.alphas_cumprod.numpy(), rtol=2e-4)


NETWORK = {**BASE, **ATTEND}


def _ddim_there(model, folder, start, num_steps, **options):
    """What a user of diffusers gets from a noise: `DDIMScheduler` as the folder has it."""
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder)
    scheduler.set_timesteps(num_steps)
    x = _torch(start)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x, **options).prev_sample
    return _numpy(x)


def _ddim_here(here, start, num_steps, **options):
    def sample(params):
        eps_fn, schedule = backbone.null_eps(here.backbone(), params), here.scheduler.schedule()
        return sampling.ddim(eps_fn, schedule, start, num_steps=num_steps, **here.scheduler.ddim_options, **options)

    return jax.jit(sample)(here.params)


START = np.random.default_rng(4).standard_normal((2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("prediction_type", "clip", "clipped"),
    [
        ("epsilon", False, False),
        ("epsilon", True, False),
        ("v_prediction", True, False),
        ("v_prediction", True, True),
        ("sample", True, True),
    ],
)
def test_fifty_steps_of_ddim_are_diffusers(prediction_type, clip, clipped, tmp_path):
    model, here = _saved(tmp_path, NETWORK, prediction_type=prediction_type, clip_sample=clip, clip_sample_range=1.5)
    assert here.scheduler.clip == (1.5 if clip else None)
    theirs = _ddim_there(model, tmp_path, START, 50, use_clipped_model_output=clipped)
    out = _ddim_here(here, START, 50, **({"use_clipped_model_output": True} if clipped else {}))
    print(f"parity {_error(out, theirs):.1e}")
    # Where pictures are clipped and their noise is not, differences grow from step to step.
    assert _error(out, theirs) < (1e-4 if clipped or not clip else 1e-3)
    if clip:
        other = _ddim_there(model, tmp_path, START, 50, use_clipped_model_output=not clipped)
        assert _error(other, theirs) > 0.02


@pytest.mark.parametrize("num_steps", [7, 25])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timestep_spacing": "linspace"},
        {"steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "trailing", "set_alpha_to_one": False},
    ],
    ids=["as-published", "linspace", "offset", "trailing"],
)
def test_the_timesteps_of_a_folder_are_diffusers(options, num_steps, tmp_path):
    """With as many timesteps as the steps divide, and twice as many as they do not."""
    # Catches: options that are read and not followed.
    trailing = options.get("timestep_spacing") == "trailing"
    model = _randomise(diffusers.UNet2DModel(**NETWORK))
    model.save_pretrained(tmp_path)
    last = num_steps * 4 if trailing else 100
    options = {"num_train_timesteps": last, "beta_end": 0.1, "clip_sample": False, **options}
    diffusers.DDIMScheduler(**options).save_pretrained(tmp_path)
    out = _ddim_here(interop.load(tmp_path), START, num_steps)
    theirs = _ddim_there(model, tmp_path, START, num_steps)
    print(f"parity {_error(out, theirs):.1e}")
    assert _error(out, theirs) < 1e-4


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ancestral_steps_are_ddpm(variance_type, tmp_path, monkeypatch):
    """With the same noise in every step, so that means and variances are compared."""
    options = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3, "variance_type": variance_type}
    model, here = _saved(tmp_path, NETWORK, **options)
    rng = np.random.default_rng(5)
    start, noise = rng.standard_normal((2, 2, 8, 8, 3)).astype(np.float32)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: _torch(noise))
    monkeypatch.setattr("jax.random.normal", lambda key, shape: jnp.asarray(noise))
    x = _torch(start)
    with torch.no_grad():
        for t in range(19, -1, -1):
            x = scheduler.step(model(x, t).sample, t, x).prev_sample

    def sample(params):
        eps_fn, schedule = backbone.null_eps(here.backbone(), params), here.scheduler.schedule()
        assert (here.scheduler.clip, here.scheduler.variance_type) == (1.0, variance_type)
        return sampling.ancestral(eps_fn, schedule, start, jax.random.key(0), clip=1.0, variance_type=variance_type)

    out = jax.jit(sample)(here.params)
    print(f"parity {_error(out, _numpy(x)):.1e}")
    assert _error(out, _numpy(x)) < 1e-4


def test_an_unconditional_export_is_a_pipeline(tmp_path):
    _, here = _saved(tmp_path / "there", NETWORK, prediction_type="v_prediction", clip_sample=False)
    interop.save(tmp_path / "here", here.network, here.params, here.scheduler)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "here")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert not pipeline.scheduler.config.clip_sample
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = interop.load(tmp_path / "pipeline")
    assert (again.network, again.scheduler) == (here.network, here.scheduler)


# With the padding of the published networks, which PyTorch applies outside of the adapted convolution.
CONDITIONAL = dataclasses.replace(tiny.NETWORK, patch_size=1, downsample_padding=0)


def test_an_embedding_for_each_block_is_a_hook_on_each_block_there(tmp_path):
    """As docs/interop.md has it. Catches: blocks under other names, the mean counted twice."""
    params = tiny.random_params(CONDITIONAL)
    model = backbone.unet(CONDITIONAL, interop.SchedulerConfig().schedule())
    rows = jax.random.normal(jax.random.key(0), (model.num_blocks, CONDITIONAL.embedding_dim))
    interop.save(tmp_path, CONDITIONAL, params, interop.SchedulerConfig())
    interop.save_adapter(tmp_path, CONDITIONAL, lora.Adapter(), rows)
    x, t, _ = _inputs(CONDITIONAL)
    out = jax.jit(lambda params: backbone.class_eps(model, params, rows)(x, t + 1))(params)
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path)
    row = safetensors_numpy.load_file(tmp_path / interop.EMBEDDING_FILE)["class_embedding.weight"]
    table = unet.class_embedding.weight.detach()
    unet.class_embedding = torch.nn.Embedding.from_pretrained(torch.cat([table[:-1], torch.tensor(row), table[-1:]]))
    rest = safetensors_torch.load_file(tmp_path / interop.BLOCKS_FILE)
    for name, vector in rest.items():
        unet.get_submodule(name).register_forward_pre_hook(
            lambda _, args, vector=vector: (args[0], args[1] + vector, *args[2:])
        )
    with torch.no_grad():
        theirs = _numpy(_forward(unet, _torch(x), t, [3, 3]))
    print(f"parity {_error(out, theirs):.1e}")
    assert _error(out, theirs) < 2e-5


@pytest.mark.parametrize("patch", [1, 2])
def test_an_adapter_in_peft_is_the_adapter_here(tmp_path, patch):
    """And so is the adapted model written as a whole; patches of pixels are channels there."""
    network = dataclasses.replace(CONDITIONAL, patch_size=patch)
    params = tiny.random_params(network)
    rng = np.random.default_rng(6)
    alpha = 5.0
    adapter = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32),
        lora.init(params, jax.random.key(0), 3, alpha),
    )
    embedding = jnp.asarray(rng.standard_normal(network.embedding_dim), jnp.float32)
    interop.save(tmp_path / "base", network, params, interop.SchedulerConfig())
    interop.save_adapter(tmp_path / "adapter", network, adapter, embedding)
    whole = denoiser.add_class(network, lora.merge(params, adapter), embedding)
    interop.save(tmp_path / "whole", *whole, interop.SchedulerConfig())

    x, t, _ = _inputs(network)
    model = backbone.unet(network, interop.SchedulerConfig().schedule())
    # The base's parameters as an argument: the compiled program does not hold them.
    out = jax.jit(lambda params, adapter: backbone.class_eps(model, params, embedding, adapter)(x, t + 1))(
        params, adapter
    )

    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "base")
    row = safetensors_numpy.load_file(tmp_path / "adapter" / interop.EMBEDDING_FILE)["class_embedding.weight"]
    table = unet.class_embedding.weight.detach()
    unet.class_embedding = torch.nn.Embedding.from_pretrained(torch.cat([table[:-1], torch.tensor(row), table[-1:]]))
    adapted = peft.PeftModel.from_pretrained(unet, tmp_path / "adapter").eval()
    merged = diffusers.UNet2DModel.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        for there in (adapted, merged):
            folded = torch.nn.functional.pixel_unshuffle(_torch(x), patch)
            theirs = _numpy(torch.nn.functional.pixel_shuffle(_forward(there, folded, t, [3, 3]), patch))
            print(f"parity {_error(out, theirs):.1e}")
            assert _error(out, theirs) < 2e-5
        other = _forward(there, folded, t, [4, 4])
        assert _error(out, _numpy(torch.nn.functional.pixel_shuffle(other, patch))) > 0.01

    adapted.save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        safetensors_numpy.load_file(tmp_path / name / interop.ADAPTER_FILE) for name in ("adapter", "theirs")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True, "alpha_pattern": {"to_q": 3}, "rank_pattern": {"conv1": 2}}]
)
def test_an_adapter_of_peft_is_the_same_here(options, tmp_path):
    """On kernels of every kind, with the asymmetric padding of the published networks."""
    # Catches: a scale for all layers, axes of the factors of a convolution.
    model, here = _saved(tmp_path / "base", {**NETWORK, "downsample_padding": 0})
    targets = ["to_q", "to_out.0", "conv1", "conv", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "linear_1"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.2, **options)
    adapted = peft.get_peft_model(model, config).eval()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.tensor(0.3 * rng.standard_normal(tuple(parameter.shape))))
    adapted.save_pretrained(tmp_path / "peft")
    adapter, embedding = interop.load_adapter(tmp_path / "peft", here.network)
    assert embedding is None and len(adapter.factors) > 20
    x, t, _ = _inputs(here.network)
    with torch.no_grad():
        theirs = _numpy(_forward(adapted, _torch(x), t, None))
        with adapted.disable_adapter():
            base = _numpy(_forward(adapted, _torch(x), t, None))
    apply = jax.jit(lambda params, adapter: denoiser.apply(here.network, params, x, t + 1, None, adapter))
    for out in (apply(here.params, adapter), apply(lora.merge(here.params, adapter), None)):
        print(f"parity {_error(out, theirs):.1e}")
        assert _error(out, theirs) < 2e-5
    assert _error(theirs, base) > 0.1


def test_a_rectangular_grey_network_is_diffusers(tmp_path):
    model, here = _saved(tmp_path, {**NETWORK, "sample_size": (8, 20), "in_channels": 1, "out_channels": 1})
    assert here.network.picture_shape == (8, 20, 1)
    x, t = np.random.default_rng(8).standard_normal((2, 8, 20, 1)).astype(np.float32), np.asarray([0, 701])
    with torch.no_grad():
        theirs = _numpy(_forward(model, _torch(x), t, None))
    out = jax.jit(lambda params: denoiser.apply(here.network, params, x, t + 1))(here.params)
    print(f"parity {_error(out, theirs):.1e}")
    assert _error(out, theirs) < 2e-5


@pytest.mark.parametrize("large", [100.0, 1000.0])
def test_a_large_mean_before_a_norm_costs_no_accuracy(large, tmp_path):
    # Catches: the variance as a difference of two large numbers.
    model = _randomise(diffusers.UNet2DModel(**NETWORK))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("conv1.bias", "conv_in.bias")):
                parameter += large
    model.save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    here = interop.load(tmp_path)
    x, t, _ = _inputs(here.network)
    with torch.no_grad():
        theirs = _numpy(_forward(model, _torch(x), t, None))
        exact = _numpy(model.double()(_torch(x).double(), torch.tensor(t)).sample)
    out = jax.jit(lambda params: denoiser.apply(here.network, params, x, t + 1))(here.params)
    print(f"parity {_error(out, exact):.1e}, diffusers {_error(theirs, exact):.1e}")
    assert _error(out, exact) < 2e-5
