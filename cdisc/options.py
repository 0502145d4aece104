"""What a diffusers folder says of a network, checked for a run whose only data are queries."""

from collections.abc import Mapping
from typing import Any

from cdisc.errors import about
from cdisc.learning.adapt import AdaptOptions
from cdisc.networks.interop import DiffusersFolder, SchedulerConfig
from cdisc.networks.unet import UNetConfig


def pretrained_options(config: Any, levels: Mapping[str, AdaptOptions]) -> tuple[UNetConfig, SchedulerConfig]:
    """The options of the network in the folder `config.network.path`.

    Args:
      config: a `Config`, or the `ConfigDict` that becomes one.
      levels: of adaptation.

    Raises:
      UserError: for a network, or a level of adaptation, that such a run cannot use.
    """
    folder = config.network.path
    network, scheduler = DiffusersFolder(path=folder, null_class=config.network.null_class).options()
    for name, level in levels.items():
        with about(f"config.adapt.levels.{name}."):
            if network.num_class_embeds in (None, 1) and not level.after and level.start == "top1":
                raise ValueError(f"start is 'top1', and {folder} has no class to start at: set it to 'normal'.")
            if level.start == "composed":
                raise ValueError(f"start is 'composed', and nothing is known of the factors of {folder}'s classes.")
            if network.num_class_embeds in (None, 1) and level.space == "span":
                raise ValueError(f"space is 'span', and {folder} has no classes to span one: set it to 'free'.")
            if level.prior_weight > 0:
                raise ValueError(
                    f"prior_weight is {level.prior_weight}, and there are no pictures for it: set it to 0."
                )
    return network, scheduler
