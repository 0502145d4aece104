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

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from cdisc.errors import UserError, about, nearest, require_positive
from cdisc.networks import denoiser
from cdisc.networks.backbone import Backbone, unet
from cdisc.networks.diffusers_options import (
    NAMED,
    NOT_IN_DIFFUSERS,
    SchedulerConfig,
    fits,
    named,
    network_config,
    scheduler_config,
)
from cdisc.networks.lora import Adapter
from cdisc.networks.unet import UNetConfig, residual_blocks

_Options = TypeVar("_Options")

NETWORK_FILE = "config.json"
SCHEDULER_FILE = "scheduler_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PIPELINE_FILE = "model_index.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
EMBEDDING_FILE = "class_embedding.safetensors"
BLOCKS_FILE = "block_embeddings.safetensors"

# What turns latents into pictures, by the beginning of its folder's name or of its class.
_DECODERS = ("vae", "vqvae", "vqmodel", "movq", "Autoencoder", "AsymmetricAutoencoder", "VQModel")

_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NUMBERED = re.compile(r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out)_(\d+)")
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# Parts of a name that stand for a module around the network or around a part of it.
_WRAPPERS = re.compile(r"(?<!\w)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_FLOATS = ("F64", "F32", "F16", "BF16")

# Options of PEFT's LoRA, besides those that are followed, that do not change what trained factors are added to.
_ADAPTER_IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        # The factors' shapes have the ranks, of every layer.
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
# Other starts change the network's own weights, which the adapter then no longer fits.
_ADAPTER_KNOWN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}

# The axes of a kernel in PyTorch's order, in terms of Flax's, by the kernel's rank: HWIO to OIHW, and (in, out) turned.
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


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
      folder: of a `UNet2DModel` with its `scheduler_config.json`, of a pipeline with `unet/` and `scheduler/`, or of
        either in a hub's cache; `~` is the home folder.

    Raises:
      UserError: for a file that is missing, damaged or pickled, an option that cdisc does not have, a network of
        latents, or weights that are not finite or not those of the options: the first few that are missing, left over
        or of another shape are named.

    Examples:
      >>> save(folder / "network", config, params, SchedulerConfig())
      >>> load(folder / "network").network == config
      True
    """
    network, scheduler = load_options(folder)
    return Pretrained(network, _read_params(_network_folder(folder), network), scheduler)


def load_options(folder: str | os.PathLike[str]) -> tuple[UNetConfig, SchedulerConfig]:
    """What `load` finds in a folder, without reading the weights; raises as it does.

    Examples:
      >>> save(folder / "network", config, params, SchedulerConfig())
      >>> load_options(folder / "network")[1].beta_schedule
      'linear'
    """
    root, part = _existing(folder), _network_folder(folder)
    for pipeline in {root, part.parent if part.name.startswith("unet") else root}:
        _require_pixels(pipeline)
    file = part / NETWORK_FILE
    if not file.is_file():
        raise UserError(f"{part} has no {NETWORK_FILE}: give the folder of a UNet2DModel, or of a pipeline with unet/.")
    network = _read(network_config, file)
    # Those who train keep checkpoint-500/unet beside one scheduler/ for all.
    for place in (root / "scheduler", part, part.parent / "scheduler", part.parents[1] / "scheduler", part.parent):
        if (place / SCHEDULER_FILE).is_file():
            return network, _read(scheduler_config, place / SCHEDULER_FILE)
    raise UserError(
        f"{root} has no {SCHEDULER_FILE}, and there is none in a scheduler/ of it or beside it: write "
        f"{part / SCHEDULER_FILE} with the noise that the network was trained on, such as "
        '{"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", '
        '"prediction_type": "epsilon"}.'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusersFolder:
    """A network that diffusers saved, as a configuration names it.

    Attributes:
      path: its folder, or its pipeline's.
      adapter: a folder of a LoRA adapter that PEFT saved, which is merged into its weights; empty for none.
      null_class: of a network with classes, the row that stands for none of them; None for one without.
      num_timesteps: the T for which `discover` names timesteps; where the folder's is another, they are scaled to it.
    """

    path: str = ""
    adapter: str = ""
    null_class: int | None = None
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        """Refuses a schedule without timesteps."""
        require_positive(num_timesteps=self.num_timesteps)

    def options(self) -> tuple[UNetConfig, SchedulerConfig]:
        """What the folder says of a network that can be explored with a query as its only data.

        Raises:
          UserError: for any other network.
        """
        folder, null = self.path, self.null_class
        if not folder:
            raise UserError(
                "config.network.path is empty: give --config.network.path=FOLDER, one that diffusers saved."
            )
        network, scheduler = load_options(folder)
        if network.in_channels not in (1, 3) or network.out_channels != network.in_channels:
            raise UserError(
                f"{folder} maps {network.in_channels} channels to {network.out_channels}: a query is a picture of 1 "
                "or 3 channels, so use a network that maps these to as many."
            )
        if network.center_input_sample:
            raise UserError(f"{folder} has center_input_sample: queries are in [-1, 1], so use a network without it.")
        if network.class_embed_type is not None:
            raise UserError(f"{folder} has class_embed_type {network.class_embed_type!r}: a run needs a table, null.")
        with about(f"{folder}: "):
            unet(network, scheduler.schedule(), scheduler.prediction_type)
        rows = network.num_class_embeds
        if rows is None and null is not None:
            raise UserError(f"{folder} has no classes: leave config.network.null_class out.")
        if rows is not None and (null is None or not 0 <= null < rows):
            raise UserError(
                f"{folder} has {rows} classes, and config.network.null_class is {null}: name the row, 0 to {rows - 1}, "
                "that was trained to stand for no class; without one there is no unconditional density to climb."
            )
        return network, scheduler


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

    Examples:
      >>> save(folder / "network", config, params, SchedulerConfig())
      >>> sorted(path.name for path in (folder / "network").iterdir())
      ['config.json', 'diffusion_pytorch_model.safetensors', 'scheduler_config.json']
    """
    leaves = _shuffled(network, flax.traverse_util.flatten_dict(params, sep="/"))
    network = _folded(network)
    expected = layout(network)
    turned = {path: _turned(path, np.asarray(leaf, np.float32)) for path, leaf in leaves.items()}
    if {path: array.shape for path, array in turned.items()} != dict(expected.values()):
        raise ValueError("the parameters are not those of the network's options")
    options = {k: v for k, v in dataclasses.asdict(network).items() if k not in NOT_IN_DIFFUSERS}
    texts = {
        NETWORK_FILE: {"_class_name": "UNet2DModel", "act_fn": "silu", **options},
        SCHEDULER_FILE: scheduler.content(),
    }
    if network.num_class_embeds is None and network.class_embed_type is None:
        parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        texts[PIPELINE_FILE] = {"_class_name": "DDPMPipeline", **parts}
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

    Examples:
      >>> adapter = lora.init(params, key, rank=2, alpha=2.0)
      >>> save_adapter(folder / "adapter", config, adapter, denoiser.null_embedding(params))
      >>> sorted(path.name for path in (folder / "adapter").iterdir())
      ['adapter_config.json', 'adapter_model.safetensors', 'class_embedding.safetensors']
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


def load_adapter(folder: str | os.PathLike[str], network: UNetConfig) -> tuple[Adapter, jax.Array | None]:
    """Reads a LoRA adapter that PEFT saved, and the class that `save_adapter` may have written beside it.

    A layer's change is `lora_B @ lora_A`, times alpha / rank or, with `use_rslora`, alpha / sqrt(rank). Where layers
    have an alpha or a rank of their own, that is made part of the second factor.

    Args:
      folder: with `adapter_config.json` and `adapter_model.safetensors`; `~` is the home folder.
      network: the options of the network that it adapts.

    Returns:
      The adapter, and the new class embedding, (E,) or (L, E) as `save_adapter` takes it, or None.

    Raises:
      UserError: for a file that is missing, damaged or pickled, another kind of adapter, or factors that are not finite
        or not those of the network.

    Examples:
      >>> adapter = lora.init(params, key, rank=2, alpha=2.0)
      >>> save_adapter(folder / "adapter", config, adapter, denoiser.null_embedding(params))
      >>> loaded, embedding = load_adapter(folder / "adapter", config)
      >>> loaded.factors.keys() == adapter.factors.keys(), embedding.shape
      (True, (32,))
    """
    root, adapter, embedding = _existing(folder), Adapter(), None
    if (root / EMBEDDING_FILE).is_file():
        embedding = _read_class(root, network)
    if embedding is None or (root / ADAPTER_FILE).is_file():
        file = root / ADAPTER_CONFIG_FILE
        if not file.is_file():
            raise UserError(f"{root} has no {ADAPTER_CONFIG_FILE}: give the folder of an adapter that PEFT saved.")
        path = _single(root, ADAPTER_FILE, f"PeftModel.from_pretrained(unet, {str(root)!r})")
        adapter = _read_factors(path, network, _read(_adapter_scales, file))
    return adapter, embedding


def layout(network: UNetConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """PyTorch's key of each parameter, with its path here and its shape there; nothing is computed.

    Examples:
      >>> layout(config)["conv_in.weight"]
      ('conv_in/kernel', (8, 3, 3, 3))
    """
    shapes = jax.eval_shape(functools.partial(denoiser.init, network), jax.random.key(0))
    keys = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        module, _, name = path.rpartition("/")
        shape = tuple(leaf.shape[axis] for axis in _axes(path, leaf.ndim))
        keys[f"{_module_name(module)}.{_LEAVES.get(name, name)}"] = (path, shape)
    return keys


def _folded(network: UNetConfig) -> UNetConfig:
    """The same network without patches, on pictures whose patches have become channels."""
    patch, (height, width, _) = network.patch_size, network.picture_shape
    return dataclasses.replace(
        network,
        patch_size=1,
        sample_size=(height // patch, width // patch) if height != width else height // patch,
        in_channels=network.in_channels * patch**2,
        out_channels=network.out_channels * patch**2,
    )


def _shuffled(network: UNetConfig, leaves: Mapping[str, Any], back: bool = False) -> dict[str, Any]:
    """Leaves whose axes of folded pixels are turned from (row, column, channel) to PyTorch's (channel, row, column).

    With `back`, from there to here.
    """
    patch, shuffled = network.patch_size, dict(leaves)

    def turn(channels: int, axis: int, paths: Iterable[str]) -> None:
        order = np.arange(patch**2 * channels).reshape(patch, patch, channels).transpose(2, 0, 1).ravel()
        order = np.argsort(order) if back else order
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


def _existing(folder: str | os.PathLike[str]) -> pathlib.Path:
    """A folder that is there; of a hub's cache of one repository, the snapshot that it calls main."""
    path = pathlib.Path(folder)
    with contextlib.suppress(RuntimeError):  # a home that nobody has
        path = path.expanduser()
    if not path.is_dir():
        kind = "is a file, and a folder is wanted" if path.exists() else "is no folder"
        raise UserError(
            f"{folder} {kind}: give one that diffusers or PEFT saved; what lies on a hub is downloaded first."
        )
    if not (path / "snapshots").is_dir() or (path / NETWORK_FILE).is_file():
        return path
    main = path / "refs" / "main"
    known = sorted((path / "snapshots").iterdir())
    if main.is_file():
        name = main.read_text(encoding="utf-8", errors="replace").strip()
        known = [snapshot for snapshot in known if snapshot.name == name]
    if len(known) != 1:
        raise UserError(f"{path / 'snapshots'} has {len(known)} snapshots that could be meant: give the folder of one.")
    return known[0]


def _network_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """Where the files of the network are: in the folder itself or, in a whole pipeline, in `unet/`."""
    root = _existing(folder)
    return root / "unet" if (root / "unet").is_dir() else root


def _require_pixels(folder: pathlib.Path) -> None:
    """Refuses the pipeline of a network whose pictures are another network's latents."""
    index = folder / PIPELINE_FILE
    parts = _read(dict, index) if index.is_file() else {}
    found = [name for name in (path.name for path in folder.iterdir() if path.is_dir()) if name.startswith(_DECODERS)]
    for name, kind in parts.items():
        classes = [str(entry) for entry in kind if entry] if isinstance(kind, list) else []
        if len(classes) == 2 and (name.startswith(_DECODERS) or classes[1].startswith(_DECODERS)):
            found.append(name)
    if found:
        raise UserError(
            f"{folder} is a pipeline of latent diffusion: its {found[0]} makes the pictures, and its network denoises "
            "latents; give a network that denoises pictures."
        )


def _single(folder: pathlib.Path, name: str, loader: str) -> pathlib.Path:
    """The path of a file of tensors, which must be there and not be pickled; `loader` is what reads it elsewhere."""
    path = folder / name
    if not path.is_file():
        alike = sorted(folder.glob(f"{name.removesuffix('.safetensors')}*"))
        pickled = [p for p in alike if p.suffix in (".bin", ".ckpt", ".pt", ".pth")]
        if pickled:
            raise UserError(
                f"{pickled[0]} is pickled, and opening it could run anything, so cdisc never does: where it can be "
                f"opened, write {name} with {loader}.save_pretrained({str(folder)!r})."
            )
        raise UserError(f"{folder} has no {name}: copy it from where the other files came.")
    return path


def _weights(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, str]]:
    """The file of a network's weights, or their index; and the file of each tensor if there is an index."""
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    # A link of a hub's cache may lead nowhere.
    there = [p for p in sorted(folder.glob(f"{stem}*.safetensors*")) if p.is_file()]
    shards = [p.name for p in there if _SHARD.search(p.name)]
    found = [p for p in there if p.name not in shards and p.suffix in (".safetensors", ".json")]
    # Variants, such as fp16, have a word more in their names.
    plain = [p for p in found if p.name in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json")] or found
    if shards and not plain:
        raise UserError(f"{folder} has {named(shards)} without their index: copy {WEIGHTS_FILE}.index.json, too.")
    if not plain:
        loader = f"UNet2DModel.from_pretrained({str(folder)!r}, use_safetensors=False)"
        return _single(folder, WEIGHTS_FILE, loader), {}
    if len(plain) > 1:
        raise UserError(f"{folder} has {named([p.name for p in plain])}: leave the one that is meant.")
    if plain[0].suffix == ".safetensors":
        return plain[0], {}
    place = _read(_weight_map, plain[0])
    for name in sorted(set(place.values())):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, which {plain[0].name} names: copy it from where it came.")
    return plain[0], place


def _weight_map(content: Mapping[str, Any]) -> dict[str, str]:
    """The file of each tensor, from the content of an index."""
    place = content.get("weight_map")
    if not isinstance(place, dict) or not place:
        raise ValueError("weight_map is missing: it says which file holds which tensor.")
    for name in place.values():
        if not isinstance(name, str) or pathlib.Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"weight_map has {name!r}: use the name of a .safetensors file beside it.")
    return place


def _read(parse: Callable[[Mapping[str, Any]], _Options], path: pathlib.Path) -> _Options:
    """What `parse` makes of a JSON file; its errors name the file."""
    try:
        content = json.loads(path.read_bytes())  # of any Unicode, with or without a byte order mark
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again from where it came.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: copy it again from where it came.")
    with about(f"{path}: "):
        return parse(content)


def _opened(path: pathlib.Path) -> Any:
    """An open file of tensors; raises UserError for one that is damaged."""
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        with path.open("rb") as file:
            if file.read(20).startswith(b"version https://git"):
                raise UserError(f"{path} stands for a file of Git LFS: run 'git lfs pull' where it is.") from error
        raise UserError(f"{path} is damaged or cut short ({error}): copy it again from where it came.") from error


def _current_name(name: str) -> str:
    """The name of a tensor without its wrappers, and the present one if it is of a 2022 checkpoint."""
    module, _, leaf = _WRAPPERS.sub("", name).rpartition(".")
    block, _, layer = module.rpartition(".")
    if layer in _LEGACY and ".attentions." in block + ".":
        module = f"{block}.{_LEGACY[layer]}"
    return f"{module}.{leaf}" if module else leaf


def _current_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a file's tensors by those that they have in a network, without a prefix that all have."""
    current = {_current_name(name): name for name in names}
    prefix = next((name.removesuffix("conv_in.weight") for name in current if name.endswith(".conv_in.weight")), "")
    if all(name.startswith(prefix) for name in current):
        return {name.removeprefix(prefix): old for name, old in current.items()}
    return current


def _float32(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
    """A tensor of a file as float32; raises UserError for one that holds what is no number."""
    if array.dtype.kind in "iub":
        raise UserError(f"{path}: {name} holds {array.dtype}: give one of {' or '.join(_FLOATS)}.")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(
            f"{path}: {name} has values that are not finite in float32: the network was broken when it was saved, so "
            "take an earlier checkpoint."
        )
    return array


def _read_params(folder: pathlib.Path, network: UNetConfig) -> denoiser.Params:
    """The parameters in a network's folder, one tensor at a time."""
    keys = layout(network)
    path, place = _weights(folder)
    with contextlib.ExitStack() as stack:
        shards = sorted(set(place.values())) or [path.name]
        files = {shard: stack.enter_context(_opened(folder / shard)) for shard in shards}
        there = {shard: set(file.keys()) for shard, file in files.items()}
        held = place or dict.fromkeys(there[path.name], path.name)
        if wrong := [f"{name} is not in {shard}" for name, shard in held.items() if name not in there[shard]]:
            raise UserError(f"{path} does not fit the files that it names ({named(wrong)}): copy all of them again.")
        stored = _current_names(held)
        if len(stored) < len(held):
            raise UserError(f"{path} holds tensors twice, with a wrapper's prefix and without: save the network anew.")
        _compare(path, keys, {name: files[held[old]].get_slice(old) for name, old in stored.items()})
        flat = {}
        for name, (leaf, shape) in keys.items():
            array = _float32(path, name, files[held[stored[name]]].get_tensor(stored[name]))
            flat[leaf] = jnp.asarray(array.transpose(np.argsort(_axes(leaf, len(shape)))))
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _compare(path: pathlib.Path, keys: Mapping[str, tuple[str, tuple[int, ...]]], stored: Mapping[str, Any]) -> None:
    """Names the first tensors of a file that are not as the network needs them.

    Raises:
      UserError: one, for all of them.
    """
    missing = [name for name in keys if name not in stored]
    more = [name for name in stored if name not in keys]
    # Looking for the nearest of hundreds of names takes long, and few are shown.
    more[:NAMED] = [name + nearest(name, missing).replace("; ", " (").replace("?", "?)") for name in more[:NAMED]]
    wrong: dict[str, list[str]] = {"missing": missing, "not the network's": more}
    shapes, kinds = wrong["of another shape"], wrong["of another type"] = [], []
    for name, (_, shape) in keys.items():
        if name in stored:
            given, kind = stored[name].get_shape(), stored[name].get_dtype()
            if given != list(shape):
                shapes.append(f"{name} {given} instead of {list(shape)}")
            elif kind not in _FLOATS:
                kinds.append(f"{name} {kind} instead of {' or '.join(_FLOATS)}")
    if any(wrong.values()):
        said = "; ".join(f"{what}: {named(names)}" for what, names in wrong.items() if names)
        raise UserError(f"{path} does not hold the weights of {NETWORK_FILE} beside it. {said[0].upper()}{said[1:]}.")


def _adapter_scales(content: Mapping[str, Any]) -> Callable[[str, int], float]:
    """What multiplies the product of a layer's factors, as a function of its name in PyTorch and its rank.

    Raises:
      ValueError: for another adapter than a LoRA, or options of PEFT that change more than that.
    """
    options = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", "init_lora_weights": True, **content}
    for name, known in _ADAPTER_KNOWN.items():
        if (value := options.pop(name)) not in known:
            raise ValueError(f"{name} is {value!r}, which cdisc does not have: it has {', '.join(map(str, known))}.")
    alpha, rooted = options.pop("lora_alpha"), options.pop("use_rslora", False)
    alphas = options.pop("alpha_pattern", None) or {}
    if not isinstance(alphas, dict) or not all(fits(value, float) for value in (alpha, *alphas.values())):
        raise ValueError("lora_alpha must be a number, and alpha_pattern numbers by the names of layers.")
    try:
        # PEFT takes the first that is the end of the layer's name.
        patterns = {re.compile(rf"(.*\.)?({pattern})$"): value for pattern, value in alphas.items()}
    except re.error as error:
        raise ValueError(
            f"alpha_pattern has what is no regular expression ({error}): save the adapter anew."
        ) from error
    # Of options that switch something on, null and false switch nothing on.
    if unknown := [name for name, value in options.items() if value and name not in _ADAPTER_IGNORED]:
        raise ValueError(f"cdisc does not have {named(unknown)}: train an adapter without.")

    def scale(layer: str, rank: int) -> float:
        own = (value for pattern, value in patterns.items() if pattern.match(layer))
        return float(next(own, alpha)) / (rank**0.5 if rooted else rank)

    return scale


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A small file's tensors as float32, by their names without wrappers."""
    with _opened(path) as file:
        names = list(file.keys())
        stored = {_WRAPPERS.sub("", name): name for name in names}
        if not stored or len(stored) < len(names):
            what = "tensors twice, with a wrapper's prefix and without" if stored else "no tensor"
            raise UserError(f"{path} holds {what}: save the adapter anew.")
        return {name: _float32(path, name, file.get_tensor(old)) for name, old in stored.items()}


def _read_factors(path: pathlib.Path, network: UNetConfig, scale_of: Callable[[str, int], float]) -> Adapter:
    """The adapter whose factors are in a file of PEFT."""
    given = {name.removeprefix("base_model.model."): array for name, array in _tensors(path).items()}
    flat: dict[str, np.ndarray] = {}
    scales: dict[str, float] = {}
    wrong: list[str] = []
    for name, (leaf, shape) in layout(network).items():
        if not leaf.endswith("/kernel"):
            continue
        layer = name.removesuffix(".weight")
        a, b = (given.pop(f"{layer}.lora_{factor}.weight", None) for factor in "AB")
        if a is None and b is None:
            continue
        rank = 0 if a is None or a.ndim != len(shape) else a.shape[0]
        # In PEFT the second factor of a convolution is a convolution too, of one pixel.
        ends = (shape[0], rank, *(1 for _ in shape[2:]))
        if a is None or b is None or not rank or a.shape[1:] != shape[1:] or b.shape != ends:
            wrong.append(layer)
            continue
        place = leaf.removesuffix("/kernel")
        scales[place] = scale_of(layer, rank)
        flat |= {f"{place}/a": a.transpose(np.argsort(_KERNEL_AXES[a.ndim])), f"{place}/b": b.reshape(-1, rank).T}
    if wrong := wrong + list(given):
        raise UserError(f"{path} has factors that are not of the network's kernels: {named(wrong)}.")
    scale = max(scales.values(), key=abs, default=1.0)
    for place, own in scales.items():
        if own != scale:
            flat[f"{place}/b"] = flat[f"{place}/b"] * (own / scale)
    flat = _shuffled(network, flat, back=True)
    factors = {place: {factor: jnp.asarray(flat[f"{place}/{factor}"]) for factor in "ab"} for place in scales}
    return Adapter(factors, scale)


def _read_class(folder: pathlib.Path, network: UNetConfig) -> jax.Array:
    """The class embedding that `save_adapter` wrote: (E,), or (L, E)."""
    tensors = _tensors(folder / EMBEDDING_FILE)
    names: list[str] = []
    if (folder / BLOCKS_FILE).is_file():
        names = [_module_name(block) for block in residual_blocks(network)]
        tensors |= _tensors(folder / BLOCKS_FILE)
    shared = tensors.pop("class_embedding.weight", np.zeros(0))
    width = network.embedding_dim
    shapes = {name: array.shape for name, array in tensors.items()}
    if shared.shape != (1, width) or shapes != dict.fromkeys(names, (width,)):
        raise UserError(f"{folder / EMBEDDING_FILE} and {BLOCKS_FILE} are not a class of this network's, {width} wide.")
    return jnp.asarray(shared[0] + np.stack([tensors[name] for name in names]) if names else shared[0])


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
