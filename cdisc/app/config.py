"""The configuration: frozen dataclasses, which alone say what its fields are, and how they are read.

A file in `configs/` makes a `ConfigDict` of them (`tree`), which the command line changes; `read` makes of that a
`Config`, which is all that stages see.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import ml_collections
from ml_collections import config_dict

from cdisc import storage
from cdisc.data import avatars, celeba, colormnist, folder, letters, planar, queries
from cdisc.diffusion.loss import require_noise_levels
from cdisc.diffusion.sampling import DDIMOptions, timesteps
from cdisc.discovery.concepts import DiscoveryOptions
from cdisc.discovery.poe import Guidance
from cdisc.errors import about, nearest, require_known, require_positive
from cdisc.evaluation.options import Evaluate, Judge, Method  # noqa: F401 (config files take them from here)
from cdisc.learning.adapt import AdaptOptions
from cdisc.learning.pretrain import PretrainOptions
from cdisc.networks import interop
from cdisc.networks.diffusers_options import DDIM_OPTIONS, Diffusion
from cdisc.networks.interop import DiffusersFolder
from cdisc.networks.unet import UNetConfig

_Section = TypeVar("_Section")

BACKBONE_SECTIONS = ("data", "diffusion", "network", "pretrain")
"""The sections that decide the weights of a trained backbone."""

_NOT_IN_WEIGHTS = {
    "data": ("cache", "outside"),
    "network": ("remat",),
    "pretrain": ("from_scratch", "bundle", "save_every", "samples_every", "keep", "result", "restore", "accumulate"),
}
"""Fields of those sections that do not change what is trained."""

_LATER = (
    "attn_norm_num_groups",
    "center_input_sample",
    "class_embed_type",
    "downsample_type",
    "mid_block_scale_factor",
    "resnet_time_scale_shift",
    "start",
    "time_embedding_dim",
    "time_embedding_type",
    "upsample_type",
)
"""Fields that are younger than digests: while they have their defaults, they are left out of them."""


@dataclasses.dataclass(frozen=True)
class ExactScore:
    """No network: the exact score of the data, which are points."""


_DATA = (colormnist, avatars, letters, celeba, planar, folder, queries)

DATA: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _DATA}
"""The data sets by name: modules, each with its `Options` and a `load` that makes a `Dataset` of them."""

Network = UNetConfig | ExactScore | DiffusersFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(PretrainOptions):
    """How the backbone is trained, or where a trained one is taken from.

    Attributes:
      seed: of the weights; `config.seed` is the other stages'.
      from_scratch: whether a backbone is trained instead of taking the bundled one.
      bundle: the name of a bundled backbone that is used unless `from_scratch`.
      restore: the workdir of another run, whose backbone is taken; empty for none.
      start: the name of a bundled backbone whose weights training starts from, with new classes; None for none.
      save_every: steps between checkpoints, each with a validation loss.
      keep: how many of them are kept.
      result: the averaged parameters that are used, the "last" ones or the "best", of the smallest validation loss.
      samples_every: steps between pictures of samples, in `pretrain/samples`; 0 draws none.
    """

    seed: int = 0
    from_scratch: bool = True
    bundle: str = ""
    restore: str = ""
    start: str | None = None
    save_every: int = 1000
    keep: int = 2
    result: Literal["last", "best"] = "last"
    samples_every: int = 2500

    def __post_init__(self) -> None:
        """Refuses intervals that never end."""
        super().__post_init__()
        require_positive(save_every=self.save_every, keep=self.keep)
        if self.samples_every < 0:
            raise ValueError(f"samples_every is {self.samples_every}: use a whole number from 0 on.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(DDIMOptions):
    """How samples are drawn. A folder of diffusers says most of it itself.

    Attributes:
      batch: pictures of a device at once, each of them under the null model and a method's classes.
    """

    batch: int = 64

    def __post_init__(self) -> None:
        """Refuses batches of none."""
        super().__post_init__()
        require_positive(batch=self.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapt:
    """What each query teaches the backbone.

    Attributes:
      pool_size: samples of the teacher to learn from.
      guidance: of the teacher in these samples.
      prior_size: pictures of trained classes for prior preservation.
      class_draws: noisy copies of the query on which the trained classes are compared.
      composed_draws: the same for the sums of the classes' parts; the last four meet four times as many
        (`evaluation.composition.of_picture`).
      composed_noise_levels: the part of the schedule where they are compared, as shares of its timesteps.
      chunk: queries whose adapters are trained side by side on a device.
      levels: what is learnt, by name; here in the order in which they can be trained (`after`).
    """

    pool_size: int = 256
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    prior_size: int = 256
    class_draws: int = 32
    composed_draws: int = 16
    composed_noise_levels: tuple[float, float] = (0.35, 0.6)
    chunk: int = 16
    levels: dict[str, AdaptOptions] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses counts below one, and adaptations that cannot follow one another."""
        counts = ("pool_size", "prior_size", "class_draws", "composed_draws", "chunk")
        require_positive(**{name: getattr(self, name) for name in counts})
        require_noise_levels(composed_noise_levels=self.composed_noise_levels)
        for name, level in self.levels.items():
            if level.after and level.after not in self.levels:
                hint = nearest(level.after, self.levels)
                raise ValueError(f"levels.{name}.after names no level: {level.after!r}{hint}")
        waiting, ordered = dict(self.levels), dict[str, AdaptOptions]()
        while waiting:
            ready = [name for name, level in waiting.items() if level.after in ("", *ordered)]
            if not ready:
                raise ValueError(f"levels: {' and '.join(waiting)} wait for one another; mend their after.")
            ordered |= {name: waiting.pop(name) for name in ready}
        object.__setattr__(self, "levels", ordered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All of a run.

    Attributes:
      seed: of all stages but pretraining.
      data: the pictures, by the `Options` of one of `DATA`; `data.name` says of which.
      diffusion: the forward process, unless the network's folder says it.
      network: the backbone; `network.kind` is "unet", "exact" or "diffusers".
      pretrain: its training, if it is trained.
      discover: the modes, the experts and their teacher.
      guidance: of the teacher in the samples that are shown.
      sampling: of all samples.
      adapt: what the queries teach.
      evaluate: what is drawn and measured.
    """

    seed: int = 0
    data: Any
    diffusion: Diffusion = dataclasses.field(default_factory=Diffusion)
    network: Network
    pretrain: Pretrain = Pretrain()
    discover: DiscoveryOptions = dataclasses.field(default_factory=DiscoveryOptions)
    guidance: Guidance = dataclasses.field(default_factory=Guidance)
    sampling: Sampling = Sampling()
    adapt: Adapt = Adapt()
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)

    def __post_init__(self) -> None:
        """Refuses sections that do not fit together."""
        if isinstance(self.data, queries.Options) != isinstance(self.network, DiffusersFolder):
            raise ValueError(
                "data.name and network.kind do not match: 'queries' and 'diffusers' go together, as in "
                "configs/pretrained.py."
            )
        if isinstance(self.network, UNetConfig) and any(side % 2 for side in self.network.picture_shape[:2]):
            raise ValueError(
                f"network.sample_size is {self.network.sample_size}: the judge of the samples needs an even number of "
                "pixels."
            )
        if self.discover.num_experts > self.discover.capacity:
            raise ValueError(
                f"discover.num_experts is {self.discover.num_experts}, more than the pool holds (capacity "
                f"{self.discover.capacity}): lower the one or raise the other."
            )
        if not isinstance(self.network, DiffusersFolder):  # which says the schedule
            self.require_timesteps(self.diffusion.num_timesteps)
        for name, method in self.evaluate.methods.items():
            if method.level not in self.adapt.levels:
                hint = nearest(method.level, self.adapt.levels)
                raise ValueError(f"evaluate.methods.{name}.level names no level: {method.level!r}{hint}")

    def require_timesteps(self, last: int) -> None:
        """Checks that a schedule of `last` timesteps has those that are named.

        Raises:
          ValueError: if not.
        """
        sampling, discovery = self.sampling, self.discover
        named = {"discover.timesteps": discovery.timesteps, "discover.hierarchy": discovery.hierarchy}
        for name, given in (named | {"sampling.num_steps": (sampling.num_steps,)}).items():
            if max(given, default=0) > last:
                raise ValueError(f"{name} has {max(given)}: the schedule has {last} timesteps, so use at most that.")
        try:
            timesteps(last, sampling.num_steps, sampling.timestep_spacing, sampling.steps_offset)
        except ValueError as error:
            raise ValueError(f"sampling.{error}") from error

    def scheduler(self) -> interop.SchedulerConfig:
        """The forward process, what the network predicts, and how it is sampled, in diffusers' words."""
        return self.diffusion.scheduler(**{name: getattr(self.sampling, name) for name in DDIM_OPTIONS})


KINDS: dict[str, tuple[str, dict[str, type]]] = {
    "data": ("name", {name: module.Options for name, module in DATA.items()}),
    "network": ("kind", {"unet": UNetConfig, "exact": ExactScore, "diffusers": DiffusersFolder}),
}
"""The sections of which there are several kinds: the field that says which, and what it may say."""


def tree(section: Any) -> ml_collections.ConfigDict:
    """A section, or all of a configuration, for the command line to change.

    A field that may be None has any type on the command line; `read` checks it.
    """
    kinds = ((tag, name, cls) for tag, classes in KINDS.values() for name, cls in classes.items())
    content = ml_collections.ConfigDict({tag: name for tag, name, cls in kinds if type(section) is cls})
    for name, kind in typing.get_type_hints(type(section)).items():
        value = getattr(section, name)
        if isinstance(value, dict):
            content[name] = ml_collections.ConfigDict(
                {key: tree(item) if dataclasses.is_dataclass(item) else item for key, item in value.items()}
            )
        elif dataclasses.is_dataclass(value):
            content[name] = tree(value)
        elif isinstance(kind, types.UnionType) and types.NoneType in typing.get_args(kind):
            content[name] = config_dict.FieldReference(value, field_type=object)
        else:
            content[name] = value
    return content


def as_dict(config: Config) -> dict[str, Any]:
    """All of a configuration as nested dictionaries."""
    return tree(config).to_dict()


def read(content: ml_collections.ConfigDict) -> Config:
    """The configuration in a `ConfigDict`; fields that it does not have take their defaults.

    Raises:
      UserError: with the full name of a field that does not exist, is missing, or has a value that it cannot have.
    """
    values = content.to_dict()
    with about("config."):
        for section, (tag, classes) in KINDS.items():
            given = dict(values.get(section, {}))
            require_known(f"{section}.{tag}", given.pop(tag, None), tuple(classes))
            values[section] = _section(classes[values[section][tag]], given, f"{section}.")
        return _section(Config, values, "")


def _section(cls: type[_Section], content: Any, where: str) -> _Section:
    """The dataclass `cls` from a mapping; raises ValueError with the fields' names, which begin with `where`."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where[:-1]} is {content!r}: it is a section, whose fields are set one by one.")
    kinds = typing.get_type_hints(cls)
    for name in content:
        if name not in kinds:
            raise ValueError(f"{where}{name} does not exist{nearest(name, kinds)}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in content and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}{field.name} is missing: add it to the config file.")
    values = {name: _value(kinds[name], value, where + name) for name, value in content.items()}
    if "seed" in values and not 0 <= values["seed"] < 2**32:
        raise ValueError(f"{where}seed is {values['seed']}: use a whole number from 0 to {2**32 - 1}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as a field annotated with `kind` holds it; raises ValueError that begins with the field's name."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(value):
        return value
    if isinstance(kind, types.UnionType):
        return None if value is None and types.NoneType in arguments else _value(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, f"{where}.")  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {name: _value(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        each = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(each) == len(value):
            return tuple(_value(item_kind, item, where) for item_kind, item in zip(each, value, strict=True))
    if origin is Literal:
        require_known(where, value, arguments)
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or value != value:
        known = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
        raise ValueError(f"{where} is {value!r}: use {known.get(kind, kind)}.")
    return value


def backbone_digest(config: Config, sections: Sequence[str] = BACKBONE_SECTIONS) -> str:
    """The digest of all in `sections` that decides the weights of a trained backbone."""
    content = {name: fields for name, fields in as_dict(config).items() if name in sections}
    for section, fields in content.items():
        left_out = set(_NOT_IN_WEIGHTS.get(section, ()))
        kind = Pretrain if section == "pretrain" else UNetConfig
        left_out |= {name for name in _LATER if name in fields and fields[name] == getattr(kind, name, None)}
        content[section] = {name: value for name, value in fields.items() if name not in left_out}
    return storage.digest(content)
