"""The method in one function each, for people at a keyboard: what `import cdisc` offers.

    import cdisc
    model = cdisc.load("digits")
    found = cdisc.discover("picture.png", model)
    samples = cdisc.sample(found, model, 16)
    learnt = cdisc.adapt(found, model)
    varied = cdisc.sample(learnt, model, 16)
    cdisc.plot.pictures(varied)

Every number that is not given is the command's: that of `configs/colormnist.py:small` for "digits", of
`configs/avatars.py:small` for "faces", of `configs/letters.py:small` for "letters", of `configs/pretrained.py` for any
other network or function.
"""

import base64
import dataclasses
import functools
import importlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cdisc import console
from cdisc.app import config as config_lib
from cdisc.app import plot
from cdisc.app.resolve import resolve
from cdisc.data import avatars, compositions
from cdisc.data import pictures as pictures_lib
from cdisc.diffusion.gaussian import Gaussian
from cdisc.diffusion.schedule import Schedule, linear_beta
from cdisc.discovery import concepts as concepts_lib
from cdisc.discovery.algebra import Concepts
from cdisc.errors import UserError, require_known
from cdisc.evaluation import baselines, composition, methods
from cdisc.keys import named
from cdisc.learning import adapt as adapt_lib
from cdisc.networks import bundled, lora
from cdisc.networks.backbone import Backbone, function, null_eps, unet
from cdisc.networks.unet import UNetConfig

_BUNDLED = {"digits": "colormnist", "faces": "avatars", "letters": "letters"}
"""The networks that come with cdisc, and the configurations of which they are `:small`'s."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A density of pictures or points, given by its noise prediction, and how it is explored.

    Attributes:
      name: what it is called.
      backbone: as functions of `params` and of a class embedding, which has no entries where there are no classes.
      params: its parameters.
      schedule: the forward process.
      shape: of one picture or point; None where the first query decides.
      config: the settings that `discover`, `sample` and `adapt` take where they are not told others.
      split: of the factors that its classes are compositions of; None where they are not known.
    """

    name: str
    backbone: Backbone
    params: Any
    schedule: Schedule
    shape: tuple[int, ...] | None
    config: config_lib.Config
    split: compositions.CompositionSplit | None = None

    def __repr__(self) -> str:
        """Its name and its size."""
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        return f"<model {self.name} of {self.shape or 'any shape'}, {count:,} parameters>"


@flax.struct.dataclass
class Found:
    """What was found in one query.

    Attributes:
      query: (*shape).
      discovery: all of it: the modes, their Gaussians, the picks, and what it took.
    """

    query: jax.Array
    discovery: concepts_lib.Discovery

    @property
    def concepts(self) -> Concepts:
        """The K concepts that explain the query, and what each of them owns."""
        return self.discovery.concepts

    @property
    def product(self) -> Gaussian:
        """The product of the concepts: the density that stands for the query's class."""
        return self.discovery.teacher

    def __repr__(self) -> str:
        """How many, of how many points."""
        pool, info = self.discovery.pool, self.discovery.info
        return f"<{len(self.concepts)} concepts of {int(pool.mask.sum())} points, {int(info.nfe):,} evaluations>"

    def _repr_html_(self) -> str:
        drawn = base64.b64encode(plot.concepts(self)._repr_png_()).decode()
        return f'<img src="data:image/png;base64,{drawn}" alt="the concepts of a query">'


def load(what: str | os.PathLike[str], null_class: int | None = None) -> Model:
    """A trained network.

    Args:
      what: "digits", "faces" or "letters", which come with cdisc, or the folder of a network that diffusers saved.
      null_class: of a folder's network with classes, the row that stands for none of them.

    Raises:
      UserError: for a folder that cannot be used.
    """
    network: UNetConfig | None
    split = None
    if what in _BUNDLED:
        config = _settings_of(str(what))
        found = bundled.load(config.pretrain.bundle)
        network, scheduler, params = found.network, found.scheduler, found.params
        split = config_lib.DATA[_BUNDLED[str(what)]].split_of(config.data)
    else:
        if not pathlib.Path(what).expanduser().is_dir():
            raise UserError(f'{what} is no folder: give one that diffusers saved, or "digits", "faces" or "letters".')
        source = config_lib.DiffusersFolder(path=str(what), null_class=null_class)
        config, _, network, scheduler, params = resolve(dataclasses.replace(_any_network(), network=source))
    assert network is not None  # only an exact score has none
    schedule = scheduler.schedule()
    backbone = unet(network, schedule, scheduler.prediction_type)
    return Model(str(what), backbone, params, schedule, network.picture_shape, config, split)


def model(
    predict: Callable[..., Any],
    schedule: Schedule | None = None,
    *,
    predicts: str = "epsilon",
    params: Any = None,
    clip: float | None = None,
) -> Model:
    """Any function as a model: a closed form, or a network of Linen, NNX, Equinox or anything else.

    Args:
      predict: `predict(x, t)`, for `x` (B, *shape) float32 and `t` (B,) int32 in 1..T, traceable by JAX; or
        `predict(params, x, t)` where `params` are given. What it holds by itself becomes constants of the programs.
      schedule: the forward process; `linear_beta()` if None.
      predicts: "epsilon", the noise; "score", the gradient of log p_t; "v_prediction"; or "sample", the clean picture.
      params: a pytree of arrays.
      clip: samplers clip the predicted clean picture to [-clip, clip]; None leaves it.

    Raises:
      ValueError: for another kind of prediction.
    """
    schedule = linear_beta() if schedule is None else schedule
    backbone = function(predict, schedule, predicts, with_params=params is not None)
    config = _any_network()
    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, clip=clip))
    return Model(getattr(predict, "__name__", type(predict).__name__), backbone, params, schedule, None, config)


def example(what: str, attributes: str, index: int = 0) -> jax.Array:
    """A picture that no training saw, of the data that a bundled network was trained on: (32, 32, 3) in [-1, 1].

    Args:
      what: "digits", "faces" or "letters"; faces are drawn, which needs `pip install 'cdisc[faces]'`.
      attributes: as "digit=3 digit_colour=pink background=dark_purple"; the first that agrees is taken.
      index: which picture of it.

    Raises:
      UserError: for attributes that do not exist, or a package that is missing.
      ValueError: for other data.
    """
    require_known("what", what, tuple(_BUNDLED))
    if what == "faces":
        return jnp.asarray(avatars.example(attributes, index, 32))
    data = config_lib.DATA[_BUNDLED[what]].load(_settings_of(what).data)
    chosen = compositions.matching(data.split.factors, [attributes])[0]
    return jnp.asarray(data.queries(chosen, index + 1)[index])


def picture(of: Any, like: Model) -> jax.Array:
    """A picture or a point as a model takes it: (*shape) float32; a warning says what had to be changed.

    Args:
      of: a file's path, an image of Pillow, bytes (H, W, C), or numbers, pictures in [-1, 1].
      like: the model whose shape it gets.

    Raises:
      TypeError, ValueError: for what is no finite array of that shape.
      UserError: for a file that cannot be read, or not without guessing.
    """
    read, warning = pictures_lib.as_query(of, like.shape)
    if warning is not None:
        console.warn(warning)
    return jnp.asarray(read)


def discover(query: Any, model: Model | Callable[..., Any], seed: int = 0, **changes: Any) -> Found:
    """Finds the concepts that explain a picture, and their product.

    Args:
      query: as `picture` takes it.
      model: what `load` or `model` returned, or a function `eps(x, t)`.
      seed: of the chains' starts and the probes.
      **changes: of the model's `DiscoveryOptions`, such as `num_experts=3`.

    Raises:
      TypeError, ValueError: for a query or a setting that cannot be used.
      UserError: for a file that cannot be read.
    """
    model = _as_model(model)
    query = picture(query, model)
    options = _changed(model.config.discover, changes)
    key = named(jax.random.key(seed), "discover")
    return Found(query, _discover(model.backbone, options, model.params, model.schedule, query, key))


def sample(
    what: Any, model: Model | Callable[..., Any], count: int = 16, seed: int = 0, guidance: float | None = None
) -> jax.Array:
    """Samples under the guidance of what was found or learnt (Eq. 13, 14): (count, *shape).

    Args:
      what: what `discover` or `adapt` returned, or a product, or concepts, which are multiplied.
      model: as `discover` takes it.
      count: how many.
      seed: of the starting noise; the same for all that are to be compared.
      guidance: the weight; that of the model's settings if None, and 2 for what was learnt.

    Raises:
      TypeError: for what no density can be made of.
    """
    model = _as_model(model)
    settings = model.config.guidance if guidance is None else dataclasses.replace(model.config.guidance, w0=guidance)
    return _draw(model, _density(what, settings, 2.0 if guidance is None else guidance), count, seed)


def adapt(query: Any, model: Model, level: str = "embedding", seed: int = 0, **changes: Any) -> adapt_lib.Adaptation:
    """Teaches a model the class of a picture: a class embedding, and a LoRA adapter where the level has one.

    Args:
      query: what `discover` returned, or a picture as it takes it, which is enough to learn an embedding from.
      model: what `load` returned.
      level: one of the model's: "embedding", "lora", or "blocks" where there is one.
      seed: of the noise and the timesteps.
      **changes: of the level's `AdaptOptions`, such as `steps=48`.

    Raises:
      TypeError, ValueError: for a query, a level or a setting that cannot be used.
      UserError: for a file that cannot be read.
    """
    model = _as_model(model)
    settings = model.config.adapt
    if not model.backbone.null(model.params).size:
        raise ValueError("this model has no place for a class embedding: give one that cdisc.load returned.")
    require_known("level", level, tuple(settings.levels))
    options = _changed(settings.levels[level], changes)
    image = query.query if isinstance(query, Found) else picture(query, model)
    key, pool = named(jax.random.key(seed), "adapt"), None
    if options.pool != "query":
        if not isinstance(query, Found):
            raise ValueError(f"level {level!r} learns from samples of the product: give what cdisc.discover returned.")
        pool = _draw(model, _density(query, settings.guidance, 0.0), settings.pool_size, seed)
    classes = None
    if model.backbone.table(model.params).shape[0]:
        counts = {"num_draws": settings.class_draws, "batch_size": model.config.sampling.batch}
        known = (model.backbone, model.params, model.schedule)
        losses = _class_losses(*known, image, named(key, "compare"), **counts)
        classes = jnp.argsort(losses).astype(jnp.int32)
    given = adapt(query, model, options.after, seed).embedding if options.after else None
    examples = adapt_lib.Examples(query=image, pool=pool, classes=classes, given=given)
    return adapt_lib.fit(model.backbone, model.params, model.schedule, examples, named(key, "fit"), options)


def compose(query: Any, model: Model, seed: int = 0) -> tuple[dict[str, str], adapt_lib.Adaptation]:
    """Reads a picture as a composition of what the model was trained on, and gives that composition's class.

    Nothing is learnt: the class is a sum of the trained classes' parts (`composition.explain`).

    Args:
      query: as `adapt` takes it.
      model: what `load` returned for a bundled network, whose classes' factors are known.
      seed: of the noise.

    Returns:
      The values that were read, by factor, and the class, which `sample` takes.

    Raises:
      TypeError, ValueError: for a query or a model that cannot be used.
      UserError: for a file that cannot be read.
    """
    model = _as_model(model)
    if model.split is None:
        raise ValueError("the factors of this model's classes are not known: give a bundled one, or use cdisc.adapt.")
    image = query.query if isinstance(query, Found) else picture(query, model)
    known, settings = (model.backbone, model.params, model.schedule, image), model.config.adapt
    split = model.split
    parts = composition.parts_of(model.backbone.table(model.params), split.trained, split.factors.sizes)
    given = {"num_draws": settings.composed_draws, "noise_levels": settings.composed_noise_levels}
    given |= {"batch_size": model.config.sampling.batch}
    found = _of_picture(*known, named(jax.random.key(seed), "compose"), parts, **given)
    values = tuple(np.asarray(found.composition).tolist())
    return compositions.attributes(split.factors, values), adapt_lib.Adaptation(found.embedding, lora.Adapter())


def _settings_of(what: str) -> config_lib.Config:
    """The settings of a network that comes with cdisc."""
    return config_lib.read(importlib.import_module(f"cdisc.configs.{_BUNDLED[what]}").get_config("small"))


def _any_network() -> config_lib.Config:
    """The settings for networks and functions about which nothing else is known."""
    return config_lib.read(importlib.import_module("cdisc.configs.pretrained").get_config())


def _as_model(given: Any) -> Model:
    if isinstance(given, Model):
        return given
    if not callable(given):
        raise TypeError(f"the model is {type(given).__name__}: give what cdisc.load returned, or a function eps(x, t).")
    return model(given)


def _changed(options: Any, changes: dict[str, Any]) -> Any:
    """The options with some of their fields changed."""
    for name in changes:
        require_known("the setting", name, [field.name for field in dataclasses.fields(options)])
    return dataclasses.replace(options, **changes)


def _density(what: Any, settings: config_lib.Guidance, class_guidance: float) -> methods.GuidedDensity:
    """The guided density that `sample` samples."""
    if isinstance(what, adapt_lib.Adaptation):
        weights = jnp.asarray([class_guidance], jnp.float32)
        return methods.GuidedDensity(embeddings=what.embedding[None], weights=weights, adapter=what.adapter)
    if isinstance(what, Found | Concepts):
        what = what.product if isinstance(what, Found) else what.product()
    if not isinstance(what, Gaussian):
        raise TypeError(f"{type(what).__name__} cannot be sampled: give what was found, learnt or multiplied.")
    return methods.teacher_density(what, settings)


def _draw(model: Model, density: methods.GuidedDensity, count: int, seed: int) -> jax.Array:
    shape = model.shape if density.teacher is None else density.teacher.mean.shape
    assert shape is not None  # what has no shape of its own has learnt nothing
    x = jax.random.normal(named(jax.random.key(seed), "sample"), (count, *shape))
    return _sample(model.backbone, model.params, model.schedule, density, x, options=model.config.sampling)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _discover(
    backbone: Backbone, options: Any, params: Any, schedule: Schedule, query: jax.Array, key: jax.Array
) -> Any:
    return concepts_lib.discover(null_eps(backbone, params), schedule, query, key, options)


_sample = jax.jit(methods.sample, static_argnames=("backbone", "options"))
_of_picture = jax.jit(composition.of_picture, static_argnames=("backbone", "num_draws", "batch_size", "noise_levels"))
_class_losses = jax.jit(baselines.class_losses, static_argnames=("backbone", "num_draws", "batch_size"))
