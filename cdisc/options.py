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
    network, scheduler = DiffusersFolder(path=config.network.path, null_class=config.network.null_class).options()
    for name, level in levels.items():
        with about(f"config.adapt.levels.{name}."):
            level.require((network.num_class_embeds or 1) - 1, composable=False, pictures=False)
    return network, scheduler
