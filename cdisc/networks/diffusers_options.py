"""The options in diffusers' JSON files, as far as they decide what a network computes and how it is sampled.

An option is one of four kinds: it is followed, it is refused (all values of it that cdisc lacks, and all names that it
does not know), it is ignored because it says how another sampler would sample or how the network was trained, or it is
a null, which stands for diffusers' default, or for false where a default is true or false.

Published files leave out options whose values were the defaults of their day, which have not changed since; those are
diffusers', not `UNetConfig`'s.
"""

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cdisc.diffusion import schedule as schedule_lib
from cdisc.diffusion.sampling import SPACINGS, VARIANCES
from cdisc.diffusion.schedule import Schedule
from cdisc.errors import require_positive
from cdisc.networks.backbone import PREDICTION_TYPES
from cdisc.networks.unet import UNetConfig

_Options = TypeVar("_Options")

BETA_SCHEDULES: Mapping[str, Callable[[int, float, float], Schedule]] = types.MappingProxyType(
    {
        "linear": schedule_lib.linear_beta,
        "scaled_linear": schedule_lib.scaled_linear_beta,
        "squaredcos_cap_v2": lambda num_timesteps, beta_start, beta_end: schedule_lib.squared_cosine(num_timesteps),
    }
)

_KNOWN: Mapping[str, Sequence[str]] = {
    "beta_schedule": tuple(BETA_SCHEDULES),
    "prediction_type": PREDICTION_TYPES,
    "variance_type": VARIANCES,
    "timestep_spacing": SPACINGS,
}
_MOST_TIMESTEPS = 10**6

# Schedulers whose forward process is variance-preserving, with their defaults where those are not DDIM's.
_DDIM = {"clip_sample": True, "clip_sample_range": 1.0, "timestep_spacing": "leading"}
_SOLVER = {"clip_sample": False, "timestep_spacing": "linspace"}
_SCALED = {**_SOLVER, "beta_start": 0.00085, "beta_end": 0.012}
_SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {},
    "DDPMParallelScheduler": {},
    "DDIMParallelScheduler": {},
    "PNDMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "DEISMultistepScheduler": _SOLVER,
    "DPMSolverMultistepScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "EulerAncestralDiscreteScheduler": _SOLVER,
    "EulerDiscreteScheduler": _SOLVER,
    "HeunDiscreteScheduler": _SCALED,
    "KDPM2AncestralDiscreteScheduler": _SCALED,
    "KDPM2DiscreteScheduler": _SCALED,
    "LMSDiscreteScheduler": _SOLVER,
    "UniPCMultistepScheduler": _SOLVER,
}

# What these samplers read and DDIM does not; a file keeps them when its scheduler was made from another one's options.
_OTHER_SAMPLERS = frozenset(
    {
        "algorithm_type",
        "corrector_order",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "eta",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "original_inference_steps",
        "predict_x0",
        "predictor_order",
        "sample_max_value",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "tau_func",
        "tensor_format",
        "time_shift_type",
        "timestep_scaling",
        "timestep_values",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
    }
)

# Options of which cdisc supports only some values. Without a middle block (null) a network is another one.
_NETWORK_KNOWN = {"act_fn": ("silu", "swish", None), "mid_block_type": ("UNetMidBlock2D",)}
_SCHEDULER_KNOWN = {
    "rescale_betas_zero_snr": (False, None),
    "thresholding": (False, None),
    "timestep_type": ("discrete", None),
    "use_flow_sigmas": (False, None),
}

# Dropout is off once a network is trained; num_train_timesteps belongs to learned time embeddings; the others are what
# diffusers' `EMAModel` writes into the file of the network that it averages.
_NETWORK_IGNORED = frozenset(
    {
        "decay",
        "dropout",
        "inv_gamma",
        "min_decay",
        "num_train_timesteps",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)

# Where diffusers' defaults differ from those of `UNetConfig`. It has none for the size, which its networks do not need.
_NETWORK_DEFAULTS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
}
NOT_IN_DIFFUSERS = ("patch_size", "dtype", "remat")

DDIM_OPTIONS = ("clip", "timestep_spacing", "steps_offset", "set_alpha_to_one")
"""What a scheduler's file says to `cdisc.diffusion.sampling.ddim`."""

# Of what is wrong, a message names this many.
NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What a scheduler's file says of the model and of its samplers. Names are diffusers'; the defaults, cdisc's own.

    Attributes:
      num_train_timesteps: T.
      beta_start: the first beta, of the linear schedules.
      beta_end: the last beta, of the linear schedules.
      beta_schedule: one of `BETA_SCHEDULES`.
      trained_betas: all betas, in place of a named schedule; None for the named one.
      prediction_type: one of `cdisc.networks.backbone.PREDICTION_TYPES`.
      clip: samplers clip the predicted clean picture to [-clip, clip]; None leaves it.
      variance_type: of `cdisc.diffusion.sampling.ancestral`.
      timestep_spacing: of `cdisc.diffusion.sampling.ddim`, as the next two.
      steps_offset: what is added to "leading" timesteps.
      set_alpha_to_one: whether the last step ends at the clean picture.
      sampler: the class of the file; cdisc draws samples by DDIM whatever it is.

    Raises:
      ValueError: for a value from which no schedule can be made, or that cdisc does not know.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    clip: float | None = 1.0
    variance_type: str = "fixed_small"
    timestep_spacing: str = "trailing"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    sampler: str = dataclasses.field(default="DDPMScheduler", compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses values from which no schedule can be made."""
        for name, known in _KNOWN.items():
            if (given := getattr(self, name)) not in known:  # the nearest would be another process
                raise ValueError(f"{name} has {given!r}, which cdisc does not have: it has {', '.join(known)}.")
        require_positive(num_train_timesteps=self.num_train_timesteps)
        if self.num_train_timesteps > _MOST_TIMESTEPS:
            raise ValueError(f"num_train_timesteps is {self.num_train_timesteps}: use at most {_MOST_TIMESTEPS}.")
        for name in ("beta_start", "beta_end", "trained_betas"):
            betas = getattr(self, name)
            if betas is not None and not np.all((np.asarray(betas) > 0.0) & (np.asarray(betas) < 1.0)):
                raise ValueError(f"{name} is {reprlib.repr(betas)}: a beta lies between 0 and 1.")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} values, but num_train_timesteps is "
                f"{self.num_train_timesteps}: give one for each."
            )
        if self.clip is not None and not 0.0 < self.clip < math.inf:
            raise ValueError(f"clip_sample_range is {self.clip}: samples are clipped to a positive number.")

    def schedule(self) -> Schedule:
        """The forward process."""
        if self.trained_betas is not None:
            return schedule_lib.from_betas(np.asarray(self.trained_betas))
        return BETA_SCHEDULES[self.beta_schedule](self.num_train_timesteps, self.beta_start, self.beta_end)

    @property
    def ddim_options(self) -> dict[str, Any]:
        """The arguments of `cdisc.diffusion.sampling.ddim` that are the file's."""
        return {name: getattr(self, name) for name in DDIM_OPTIONS}

    def content(self) -> dict[str, Any]:
        """The content of a `scheduler_config.json` from which `scheduler_config` makes the same."""
        content = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("clip", "sampler")}
        clips = {} if self.clip is None else {"clip_sample_range": self.clip}
        return {"_class_name": "DDPMScheduler", **content, "clip_sample": self.clip is not None, **clips}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The forward process, with a linear schedule, and what the network predicts, where no folder says them.

    Attributes:
      num_timesteps: T.
      beta_start: the first beta.
      beta_end: the last beta.
      prediction_type: one of `cdisc.networks.backbone.PREDICTION_TYPES`.
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        """Refuses what is no forward process."""
        require_positive(num_timesteps=self.num_timesteps)
        self.scheduler()

    def scheduler(self, **sampler: Any) -> SchedulerConfig:
        """The same in diffusers' words, with the options of its sampler."""
        fields = {name: value for name, value in vars(self).items() if name != "num_timesteps"}
        return SchedulerConfig(num_train_timesteps=self.num_timesteps, **fields, **sampler)


def scheduler_config(content: Mapping[str, Any]) -> SchedulerConfig:
    """The options in a `scheduler_config.json`: those of `DDIMScheduler.from_config`, whichever scheduler's file it is.

    Raises:
      ValueError: for options that no scheduler of diffusers has, or processes that cdisc does not have.

    Examples:
      >>> scheduler_config({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}).beta_schedule
      'squaredcos_cap_v2'
    """
    sampler = _of_class(content, tuple(_SCHEDULERS))
    defaults = {**_DDIM, **_SCHEDULERS[sampler]}
    options = {**defaults, **content}
    options = {k: defaults.get(k) if v is None and k != "clip_sample" else v for k, v in options.items()}
    clips, clip = bool(options.pop("clip_sample")), options.pop("clip_sample_range")
    if not fits(content.get("clip_sample"), bool | None) or not fits(clip, float):
        raise ValueError("clip_sample must be true or false, and clip_sample_range a number.")
    epsilon = options.pop("predict_epsilon", None)  # of 2022
    if epsilon is not None:
        if not fits(epsilon, bool):
            raise ValueError("predict_epsilon must be true or false.")
        predicted = "epsilon" if epsilon else "sample"
        if options.get("prediction_type") not in (None, predicted):
            raise ValueError(
                f"predict_epsilon is {str(epsilon).lower()} and prediction_type {options['prediction_type']!r}, which "
                "contradict each other: take out the one that is wrong."
            )
        options["prediction_type"] = predicted
    # In the logarithm, a variance is the same one.
    if fits(options.get("variance_type"), str):
        options["variance_type"] = options["variance_type"].removesuffix("_log")
    options |= {"clip": clip if clips else None, "sampler": sampler}
    return _options(SchedulerConfig, options, _SCHEDULER_KNOWN, _OTHER_SAMPLERS)


def network_config(content: Mapping[str, Any]) -> UNetConfig:
    """The options in a `config.json`.

    Raises:
      ValueError: for options that do not exist in diffusers or that cdisc does not have.

    Examples:
      >>> types = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
      >>> network_config({"sample_size": 16, "block_out_channels": [32], **types}).block_out_channels
      (32,)
    """
    _of_class(content, ("UNet2DModel",))
    for name in NOT_IN_DIFFUSERS:
        if name in content:
            raise ValueError(f"{name} is an option of cdisc's own and none of diffusers': take it out.")
    options = {**_NETWORK_DEFAULTS, **{k: v for k, v in content.items() if v is not None or k not in _NETWORK_DEFAULTS}}
    size = options.get("sample_size")
    if size is None:
        raise ValueError(
            "sample_size is missing: write into the file the side of the pictures in pixels, or [height, width]."
        )
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        options["sample_size"] = size[0]
    for name in ("down_block_types", "up_block_types"):
        if fits(options[name], tuple[str, ...]):
            # The names of blocks in diffusers 0.0, which it still reads.
            options[name] = [kind.removeprefix("UNetRes") for kind in options[name]]
    if fits(options.get("act_fn"), str):
        options["act_fn"] = options["act_fn"].lower()
    return _options(UNetConfig, options, _NETWORK_KNOWN, _NETWORK_IGNORED)


def named(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are.

    Examples:
      >>> named(["a", "b", "c", "d", "e", "f", "g"])
      'a, b, c, d, e, and 2 more'
    """
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of the type with which a field is annotated.

    Examples:
      >>> fits(2, int), fits("2", int), fits(None, int | None)
      (True, False, True)
    """
    if isinstance(kind, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(fits(item, typing.get_args(kind)[0]) for item in value)
    if kind in (int, float):
        # In Python True is a number, and JSON's NaN and Infinity are read as some.
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        return number and math.isfinite(value)
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
      ValueError: for options that do not exist, or a value that `cls` or `limited` refuses.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    content = {name: value for name, value in content.items() if not name.startswith("_")}
    unknown = [reprlib.repr(name) for name in content if name not in {*kinds, *limited, *ignored}]
    if unknown:
        raise ValueError(f"cdisc does not know {named(unknown)}, and it could matter: take out what does not.")
    values = {}
    for name, value in content.items():
        kind = kinds.get(name)
        if name in limited and value not in limited[name]:
            # Without the nearest name: a network with another activation is not one with a mistyped name.
            known = ", ".join(str(known) for known in limited[name] if known is not None)
            raise ValueError(f"{name} is {reprlib.repr(value)}, which cdisc does not have: it has {known}.")
        if kind is None or (value is None and not fits(None, kind) and kind is not bool):
            continue
        value = False if value is None and kind is bool else value
        if not fits(value, kind):
            wanted = kind.__name__ if isinstance(kind, type) and not typing.get_origin(kind) else kind
            raise ValueError(f"{name} is {reprlib.repr(value)}, which is not {wanted}.")
        values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _of_class(content: Mapping[str, Any], known: Sequence[str]) -> str:
    """The class whose options a file holds; where it does not say, the first of `known`."""
    name = content.get("_class_name", known[0])
    if name not in known:
        raise ValueError(f"it is of a {reprlib.repr(name)}: cdisc reads {', '.join(known)}.")
    return str(name)
