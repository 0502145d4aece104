"""Networks and adapters in the folders that diffusers and PEFT read and write, without PyTorch.

A folder of diffusers' `UNet2DModel` holds `config.json` and `diffusion_pytorch_model.safetensors`; beside them, or in
the `unet/` and `scheduler/` of a whole pipeline, `scheduler_config.json` says what the forward process was. Layers have
the same names here and there (`cdisc.networks.blocks`), so a weight needs its path rewritten and its axes turned:
`down_blocks_0/resnets_1/conv1/kernel` (H, W, in, out) is `down_blocks.0.resnets.1.conv1.weight` (out, in, H, W).

The null class has no counterpart in diffusers, where it is a class like any other: the last row of
`class_embedding.weight`, chosen with `class_labels = num_class_embeds - 1`. A table that was trained elsewhere without
a null class is read unchanged; cdisc then takes its last row for the null class.

Published folders leave out options whose values were the defaults of their day, which have not changed since; those
are diffusers', not `UNetConfig`'s. Checkpoints of 2022 name the projections of attention as `_LEGACY` lists.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from cdisc.diffusion import schedule as schedule_lib
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import UserError, about, nearest, require_known, require_positive
from cdisc.networks import denoiser
from cdisc.networks.backbone import PREDICTION_TYPES, Backbone, unet
from cdisc.networks.lora import Adapter
from cdisc.networks.unet import UNetConfig, residual_blocks

_Options = TypeVar("_Options")

NETWORK_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
EMBEDDING_FILE = "class_embedding.safetensors"
BLOCKS_FILE = "block_embeddings.safetensors"

BETA_SCHEDULES: Mapping[str, Callable[[int, float, float], Schedule]] = types.MappingProxyType(
    {
        "linear": schedule_lib.linear_beta,
        "scaled_linear": schedule_lib.scaled_linear_beta,
        "squaredcos_cap_v2": lambda num_timesteps, beta_start, beta_end: schedule_lib.squared_cosine(num_timesteps),
    }
)

# Schedulers whose forward process is variance-preserving, and whether they clip where their file does not say.
_SCHEDULERS = {
    "DDPMScheduler": True,
    "DDIMScheduler": True,
    "PNDMScheduler": False,
    "DPMSolverMultistepScheduler": False,
}

# Options that say how that scheduler samples, not what the network was trained on: cdisc has its own samplers.
_SAMPLING_OPTIONS = frozenset(
    {
        "algorithm_type",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "lambda_min_clipped",
        "lower_order_final",
        "sample_max_value",
        "set_alpha_to_one",
        "skip_prk_steps",
        "solver_order",
        "solver_type",
        "steps_offset",
        "tensor_format",
        "time_shift_type",
        "timestep_spacing",
        "timestep_values",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    }
)

# Options of which cdisc supports only some values.
_NETWORK_KNOWN = {"act_fn": ("silu", "swish"), "mid_block_type": ("UNetMidBlock2D",)}
_SCHEDULER_KNOWN = {
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "use_flow_sigmas": (False,),
}

# Dropout is off once a network is trained; num_train_timesteps belongs to learned time embeddings.
_NETWORK_IGNORED = frozenset({"dropout", "num_train_timesteps"})

# Where diffusers' defaults differ from those of `UNetConfig`. It has none for the size, which its networks do not need.
_NETWORK_DEFAULTS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
}
_NOT_IN_DIFFUSERS = ("patch_size", "dtype", "remat")

_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NUMBERED = re.compile(r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out)_(\d+)")
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

_FLOATS = ("F64", "F32", "F16", "BF16")

# The axes of a kernel in PyTorch's order, in terms of Flax's, by the kernel's rank: HWIO to OIHW, and (in, out) turned.
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What a scheduler's file says of the model: its forward process and what it predicts. Names are diffusers'.

    Attributes:
      num_train_timesteps: T.
      beta_start: the first beta, of the linear schedules.
      beta_end: the last beta, of the linear schedules.
      beta_schedule: one of `BETA_SCHEDULES`.
      trained_betas: all betas, in place of a named schedule; None for the named one.
      prediction_type: one of `cdisc.networks.backbone.PREDICTION_TYPES`.
      clip: samplers clip the predicted clean picture to [-clip, clip]; None leaves it.

    Raises:
      ValueError: for a beta schedule or prediction type that cdisc does not know.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        """Refuses values from which no schedule can be made."""
        require_known("beta_schedule", self.beta_schedule, tuple(BETA_SCHEDULES))
        require_known("prediction_type", self.prediction_type, PREDICTION_TYPES)
        require_positive(num_train_timesteps=self.num_train_timesteps)
        for name in ("beta_start", "beta_end", "trained_betas"):
            betas = getattr(self, name)
            if betas is not None and (np.min(betas) <= 0.0 or np.max(betas) >= 1.0):
                raise ValueError(f"{name} is {betas}: a beta lies between 0 and 1.")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} values, but num_train_timesteps is "
                f"{self.num_train_timesteps}: give one for each."
            )

    def schedule(self) -> Schedule:
        """The forward process."""
        if self.trained_betas is not None:
            return schedule_lib.from_betas(np.asarray(self.trained_betas))
        return BETA_SCHEDULES[self.beta_schedule](self.num_train_timesteps, self.beta_start, self.beta_end)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with everything needed to use it.

    Attributes:
      network: its options.
      params: its parameters, as `cdisc.networks.denoiser` takes them, float32.
      scheduler: its forward process and what it predicts.
    """

    network: UNetConfig
    params: denoiser.Params
    scheduler: SchedulerConfig

    def backbone(self) -> Backbone:
        """The network as functions of `params` and of a class embedding; raises as `backbone.unet` does."""
        return unet(self.network, self.scheduler.schedule(), self.scheduler.prediction_type)


def load(folder: str | os.PathLike[str]) -> Pretrained:
    """Reads a network that diffusers saved.

    Args:
      folder: of a `UNet2DModel` with its `scheduler_config.json`, or of a pipeline with `unet/` and `scheduler/`.

    Raises:
      UserError: for a file that is missing, damaged or pickled, an option that cdisc does not have, or weights that are
        not those of the options: all that are missing, left over or of another shape are named.
    """
    network, scheduler = load_options(folder)
    return Pretrained(network, _read_params(_weights_file(_part(folder, "unet")), network), scheduler)


def load_options(folder: str | os.PathLike[str]) -> tuple[UNetConfig, SchedulerConfig]:
    """What `load` finds in a folder, without reading the weights; raises as it does."""
    if not pathlib.Path(folder).is_dir():
        raise UserError(f"{folder} is no folder: give one that diffusers saved.")
    network = _read(network_config, _file(_part(folder, "unet"), NETWORK_FILE))
    return network, _read(scheduler_config, _file(_part(folder, "scheduler"), SCHEDULER_FILE))


def save(
    folder: str | os.PathLike[str], network: UNetConfig, params: denoiser.Params, scheduler: SchedulerConfig
) -> None:
    """Writes a network for diffusers: `UNet2DModel.from_pretrained(folder)`, `DDIMScheduler.from_pretrained(folder)`.

    An adapted model is written as the result of `lora.merge` and `denoiser.add_class`. The null class becomes the last
    row of `class_embedding.weight`. An unconditional network is a `DDPMPipeline` as well. diffusers has no patches: a
    network with `patch_size` p becomes one of pictures that `torch.nn.functional.pixel_unshuffle(x, p)` has folded,
    whose samples `pixel_shuffle` unfolds.

    Args:
      folder: where to; files of the same names are replaced.
      network: the network's options; its `dtype` stays behind, the weights are float32.
      params: its parameters.
      scheduler: its forward process and what it predicts.

    Raises:
      UserError: if the folder cannot be written.
      ValueError: if the parameters are not those of the network.
    """
    leaves = _shuffled(network, flax.traverse_util.flatten_dict(params, sep="/"))
    network = _folded(network)
    expected = layout(network)
    turned = {path: _turned(path, np.asarray(leaf, np.float32)) for path, leaf in leaves.items()}
    if {path: array.shape for path, array in turned.items()} != dict(expected.values()):
        raise ValueError("the parameters are not those of the network's options")
    options = {k: v for k, v in dataclasses.asdict(network).items() if k not in _NOT_IN_DIFFUSERS}
    process = {k: v for k, v in dataclasses.asdict(scheduler).items() if k != "clip"}
    process |= {"clip_sample": scheduler.clip is not None}
    process |= {} if scheduler.clip is None else {"clip_sample_range": scheduler.clip}
    texts = {
        NETWORK_FILE: {"_class_name": "UNet2DModel", "act_fn": "silu", **options},
        SCHEDULER_FILE: {"_class_name": "DDPMScheduler", **process},
    }
    if network.num_class_embeds is None and network.class_embed_type is None:
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        texts["model_index.json"] = {"_class_name": "DDPMPipeline", **parts}
    tensors = {name: turned[path] for name, (path, _) in expected.items()}
    _write(pathlib.Path(folder), texts, {WEIGHTS_FILE: tensors})


def save_adapter(folder: str | os.PathLike[str], network: UNetConfig, adapter: Adapter, embedding: jax.Array) -> None:
    """Writes a LoRA adapter for PEFT, `PeftModel.from_pretrained(unet, folder)`, and its class next to it.

    The file `class_embedding.safetensors` holds `class_embedding.weight` (1, E). In diffusers it becomes a row of the
    network's table: before the adapter is loaded, set `unet.class_embedding` to `torch.nn.Embedding.from_pretrained` of
    the old table with the row put before its last (`denoiser.add_class`), or of the row and zeros where there was no
    table; its label is then that row's number.

    Neither PEFT nor diffusers can hold an embedding for each residual block, and no bias stands for one, for the time
    embedding goes through a SiLU within each block. The mean over blocks then becomes the class row, and
    `block_embeddings.safetensors` holds the rest: by the name of each block, a vector (E,) that a forward pre-hook adds
    to the `temb` of that block (docs/interop.md).

    Args:
      folder: where to; files of the same names are replaced.
      network: the options of the adapted network.
      adapter: without factors where an embedding was learnt alone, which then is all that is written.
      embedding: (E,) the new class embedding, or (L, E), one for each of the network's residual blocks.

    Raises:
      UserError: if the folder cannot be written.
    """
    rows = np.atleast_2d(np.asarray(embedding))
    shared = rows.mean(axis=0)
    tensors = {EMBEDDING_FILE: {"class_embedding.weight": shared[None]}}
    texts = {}
    if len(rows) > 1:
        names = map(_module_name, residual_blocks(network))
        tensors[BLOCKS_FILE] = {name: row - shared for name, row in zip(names, rows, strict=True)}
    if adapter.factors:
        tensors[ADAPTER_FILE] = {}
        leaves = _shuffled(network, flax.traverse_util.flatten_dict(adapter.factors, sep="/"))
        for path in adapter.factors:
            a, b = (np.asarray(leaves[f"{path}/{name}"]) for name in "ab")
            prefix = f"base_model.model.{_module_name(path)}"
            tensors[ADAPTER_FILE][f"{prefix}.lora_A.weight"] = _turned("kernel", a)
            # In PEFT the second factor of a convolution is a convolution too, of one pixel.
            b = b.reshape((1,) * (a.ndim - 2) + b.shape)
            tensors[ADAPTER_FILE][f"{prefix}.lora_B.weight"] = _turned("kernel", b)
        (rank,) = {factors["b"].shape[0] for factors in adapter.factors.values()}
        texts[ADAPTER_CONFIG_FILE] = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": adapter.scale * rank,
            "target_modules": sorted(map(_module_name, adapter.factors)),
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }
    _write(pathlib.Path(folder), texts, tensors)


def network_config(options: Mapping[str, Any]) -> UNetConfig:
    """The options of a `config.json`.

    Raises:
      ValueError: for options that do not exist in diffusers or that cdisc does not have.
    """
    _of_class(options, ("UNet2DModel",))
    for name in _NOT_IN_DIFFUSERS:
        if name in options:
            raise ValueError(f"{name} is an option of cdisc's own and none of diffusers': take it out.")
    options = {**_NETWORK_DEFAULTS, **options}
    size = options.get("sample_size")
    if size is None:
        raise ValueError("sample_size is missing: write the side of the pictures, in pixels, into the file.")
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        options["sample_size"] = size[0]
    for name in ("down_block_types", "up_block_types"):
        if _fits(options[name], tuple[str, ...]):
            # The names of blocks in diffusers 0.0, which it still reads.
            options[name] = [kind.removeprefix("UNetRes") for kind in options[name]]
    return _options(UNetConfig, options, _NETWORK_KNOWN, _NETWORK_IGNORED)


def scheduler_config(options: Mapping[str, Any]) -> SchedulerConfig:
    """The options of a `scheduler_config.json`, as far as they concern the model and not how it is sampled.

    Raises:
      ValueError: for options that no scheduler of diffusers has, or processes that cdisc does not have.
    """
    name = _of_class(options, tuple(_SCHEDULERS))
    options = dict(options)
    clips = options.pop("clip_sample", _SCHEDULERS[name])
    clip = options.pop("clip_sample_range", 1.0)
    if not _fits(clips, bool) or not _fits(clip, float):
        raise ValueError("clip_sample must be true or false, and clip_sample_range a number.")
    options["clip"] = clip if clips else None
    return _options(SchedulerConfig, options, _SCHEDULER_KNOWN, _SAMPLING_OPTIONS)


def layout(network: UNetConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """PyTorch's key of each parameter, with its path here and its shape there; nothing is computed."""
    shapes = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    keys = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        module, _, name = path.rpartition("/")
        shape = tuple(leaf.shape[axis] for axis in _axes(path, leaf.ndim))
        keys[f"{_module_name(module)}.{_LEAVES.get(name, name)}"] = (path, shape)
    return keys


def _folded(network: UNetConfig) -> UNetConfig:
    """The same network without patches, on pictures whose patches have become channels."""
    patch = network.patch_size
    return dataclasses.replace(
        network,
        patch_size=1,
        sample_size=network.sample_size // patch,
        in_channels=network.in_channels * patch**2,
        out_channels=network.out_channels * patch**2,
    )


def _shuffled(network: UNetConfig, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves whose axes of folded pixels are turned from (row, column, channel) to PyTorch's (channel, row, column)."""
    patch, shuffled = network.patch_size, dict(leaves)

    def turn(channels: int, axis: int, paths: Iterable[str]) -> None:
        order = np.arange(patch**2 * channels).reshape(patch, patch, channels).transpose(2, 0, 1).ravel()
        shuffled.update({path: np.take(np.asarray(leaves[path]), order, axis) for path in paths if path in leaves})

    turn(network.in_channels, -2, ("conv_in/kernel", "conv_in/a"))
    turn(network.out_channels, -1, ("conv_out/kernel", "conv_out/bias", "conv_out/b"))
    return shuffled


def _module_name(path: str) -> str:
    """`mid_block/attentions_0/to_out_0` as PyTorch names it, `mid_block.attentions.0.to_out.0`."""
    return _NUMBERED.sub(r"\1.\2", path).replace("/", ".")


def _axes(path: str, ndim: int) -> tuple[int, ...]:
    """Where the axes of a parameter in PyTorch are to be found here."""
    return _KERNEL_AXES[ndim] if path.endswith("kernel") else tuple(range(ndim))


def _turned(path: str, array: np.ndarray) -> np.ndarray:
    """A parameter with its axes as PyTorch has them; contiguous, since safetensors writes memory as it lies."""
    return np.ascontiguousarray(array.transpose(_axes(path, array.ndim)))


def _part(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Where the files of a part are: in the folder itself or, in a whole pipeline, in a subfolder of that name."""
    folder = pathlib.Path(folder)
    return folder / name if (folder / "unet").is_dir() else folder


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a file that must be there."""
    path = folder / name
    if not path.is_file():
        there = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(name, there) or ": give a whole folder that diffusers saved."
        raise UserError(f"{folder} has no {name}{hint}")
    return path


def _weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The path of the weights, which must not be pickled."""
    if not (folder / WEIGHTS_FILE).is_file():
        for path in sorted(folder.iterdir()):
            if path.suffix in (".bin", ".ckpt", ".pt", ".pth"):
                raise UserError(
                    f"{path} is pickled, and opening it could run anything, so cdisc never does: where diffusers is "
                    f"installed, write {WEIGHTS_FILE} with UNet2DModel.from_pretrained({str(folder)!r}, "
                    f"use_safetensors=False).save_pretrained({str(folder)!r})."
                )
    return _file(folder, WEIGHTS_FILE)


def _read(parse: Callable[[Mapping[str, Any]], _Options], path: pathlib.Path) -> _Options:
    """What `parse` makes of a JSON file; its errors name the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again from where it came.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: copy it again from where it came.")
    with about(f"{path}: "):
        return parse(content)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of the type with which a field is annotated."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, typing.get_args(kind)[0]) for item in value)
    if kind in (int, float):
        # In Python True is a number.
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _options(
    cls: type[_Options], content: Mapping[str, Any], limited: Mapping[str, Sequence[Any]], ignored: Iterable[str]
) -> _Options:
    """The dataclass `cls` from the options of a file.

    Args:
      cls: whose fields are named as in the file.
      content: the file's.
      limited: other options, and those of their values that change nothing.
      ignored: options that may have any value.

    Raises:
      ValueError: for options that do not exist, all of them, or a value that `cls` or `limited` refuses.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    content = {name: value for name, value in content.items() if not name.startswith("_")}
    known = [*kinds, *limited, *ignored]
    unknown = [_named(name, known) for name in content if name not in known]
    if unknown:
        raise ValueError(f"cdisc does not know {', '.join(unknown)}.")
    for name, value in content.items():
        if name in limited:
            require_known(name, value, limited[name])
        elif name in kinds and not _fits(value, kinds[name]):
            kind = kinds[name]
            raise ValueError(f"{name} is {value!r}, which is not {kind.__name__ if isinstance(kind, type) else kind}.")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in kinds})


def _named(name: str, known: Iterable[str]) -> str:
    """A name that is not one of `known`, with the nearest that is."""
    hint = nearest(name, known).removeprefix("; ")
    return f"{name!r} ({hint})" if hint else repr(name)


def _of_class(content: Mapping[str, Any], known: Sequence[str]) -> str:
    """The class whose options a file holds; where it does not say, the first of `known`."""
    name = content.get("_class_name", known[0])
    require_known("_class_name", name, known)
    return str(name)


def _current_name(name: str) -> str:
    """The present name of a key of a 2022 checkpoint."""
    module, _, leaf = name.rpartition(".")
    block, _, layer = module.rpartition(".")
    return f"{block}.{_LEGACY[layer]}.{leaf}" if layer in _LEGACY and ".attentions." in block + "." else name


def _read_params(path: pathlib.Path, network: UNetConfig) -> denoiser.Params:
    """The parameters from a safetensors file, one tensor at a time."""
    keys = layout(network)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = {_current_name(name): name for name in file.keys()}  # noqa: SIM118 (not a mapping)
            _compare(path, keys, {name: file.get_slice(old) for name, old in stored.items()})
            flat = {}
            for name, (leaf, shape) in keys.items():
                back = np.argsort(_axes(leaf, len(shape)))
                flat[leaf] = jnp.asarray(file.get_tensor(stored[name]).transpose(back), jnp.float32)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): copy it again from where it came.") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _compare(path: pathlib.Path, keys: Mapping[str, tuple[str, tuple[int, ...]]], stored: Mapping[str, Any]) -> None:
    """Names every tensor of a file that is not as the network needs it.

    Raises:
      UserError: one, for all of them.
    """
    missing = [name for name in keys if name not in stored]
    wrong = [f"{name!r} is missing" for name in missing]
    wrong += [f"{_named(name, missing or keys)} is not the network's" for name in stored if name not in keys]
    for name, (_, shape) in keys.items():
        if name in stored:
            given, kind = stored[name].get_shape(), stored[name].get_dtype()
            if given != list(shape):
                wrong.append(f"{name!r} has the shape {given} instead of {list(shape)}")
            elif kind not in _FLOATS:
                wrong.append(f"{name!r} holds {kind} instead of floating-point numbers")
    if wrong:
        raise UserError(f"{path} does not hold the weights of {NETWORK_FILE} beside it: {', '.join(wrong)}.")


def _write(
    folder: pathlib.Path, texts: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Writes JSON and safetensors files, the weights first: a folder that has its configuration is complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in tensors.items():
            # Without this mark PyTorch's readers refuse the file.
            safetensors.numpy.save_file(dict(content), folder / name, metadata={"format": "pt"})
        for name, text in texts.items():
            (folder / name).write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} cannot be written ({error}): choose another folder.") from error
