"""Config sections to dataclasses; digests and differences."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from cdisc import storage
from cdisc.errors import UserError, about, nearest

_Options = TypeVar("_Options")

BACKBONE_SECTIONS = ("data", "diffusion", "network", "pretrain")
"""The sections that decide the weights of a trained backbone."""

_NOT_IN_WEIGHTS = {
    "data": ("cache",),
    "network": ("remat",),
    "pretrain": ("from_scratch", "bundle", "save_every", "samples_every", "keep", "result", "restore", "accumulate"),
}
"""Fields of those sections that do not change what is trained."""

NOT_IN_RESULTS = (
    "data.cache",
    "data.manifest",
    "data.root",
    "network.path",
    "network.remat",
    "pretrain.accumulate",
    "pretrain.keep",
    "pretrain.restore",
    "pretrain.samples_every",
    "pretrain.save_every",
    "discover.lanes",
    "adapt.chunk",
    "sampling.batch",
)
"""Fields that may change on resume: they affect results only by rounding, and where the data lie is no matter as long
as their fingerprint is the same."""


def parse(cls: type[_Options], section: Mapping[str, Any], where: str, ignore: Iterable[str] = ()) -> _Options:
    """An options dataclass from the section of a config.

    Args:
      cls: a dataclass.
      section: a `ConfigDict` or a mapping with its fields.
      where: the section's name, for messages.
      ignore: fields of the section that are not of `cls`.

    Raises:
      UserError: for a field that does not exist, is missing, or has a value that `cls` refuses.
    """
    values = {name: value for name, value in section.items() if name not in set(ignore)}
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"config.{where}.{name} does not exist{nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"config.{where}.{name} is missing: add it to the config file.")
    try:
        with about(f"config.{where}."):
            return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except TypeError as error:
        raise UserError(f"config.{where} cannot be used: {error}.") from error


def backbone_digest(config: ml_collections.ConfigDict, sections: Sequence[str] = BACKBONE_SECTIONS) -> str:
    """The digest of all in `sections` that decides the weights of a trained backbone."""
    content = {name: config.to_dict()[name] for name in sections if name in config}
    for section, fields in content.items():
        content[section] = {k: v for k, v in fields.items() if k not in _NOT_IN_WEIGHTS.get(section, ())}
    return storage.digest(content)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one from dotted names to values."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted names whose values differ between two JSON-like mappings."""
    before, after = (flatten(json.loads(json.dumps(content))) for content in (old, new))
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
