"""What is drawn for each query, how its adaptations are sampled, and what judges the samples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cdisc.errors import require_positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to sample an adaptation.

    Attributes:
      level: its name in `config.adapt.levels`.
      guidance: weight of the new class,
      class_sigma_min: where the noise-to-signal ratio is at least this,
      class_sigma_max: and at most this; elsewhere the class has weight 1.
      teacher_weight: `w0` of the teacher beside it; 0 leaves the teacher out.
      teacher_sigma_min: the teacher guides where the noise-to-signal ratio is at least this.
    """

    level: str
    guidance: float = 2.0
    class_sigma_min: float = 0.0
    class_sigma_max: float = float("inf")
    teacher_weight: float = 0.0
    teacher_sigma_min: float = 0.0

    def __post_init__(self) -> None:
        """Refuses an interval in which nothing lies."""
        if not self.class_sigma_min < self.class_sigma_max:
            raise ValueError(
                f"class_sigma_min is {self.class_sigma_min} and class_sigma_max {self.class_sigma_max}: use a smaller "
                "and a greater one."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
    """The classifier that judges samples, trained on real pictures alone.

    Attributes:
      seed: of its weights and of its pictures.
      pictures: it is trained on.
      steps: of its training.
      bundle: the name of a bundled one, used where it was trained like this and on these data.
    """

    seed: int = 0
    pictures: int = 20_000
    steps: int = 3000
    bundle: str = ""

    def __post_init__(self) -> None:
        """Refuses counts below one."""
        require_positive(pictures=self.pictures, steps=self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is drawn for each query, and what it is compared with.

    Attributes:
      num_queries: held-out compositions, in an order drawn by the seed.
      per_class: pictures of every held-out composition, in place of `num_queries`; 0 leaves it at these.
      seeds: of discovery, adaptation and samples, under each of which every query is taken; () is `config.seed` alone.
      samples: of each method for each query.
      references: other pictures of the query's composition.
      k: neighbours of precision and recall.
      features: in which sets of pictures are compared: "judge", or one of `features.SOURCES`.
      weights: a file with the weights of these.
      class_guidance: of Top-1, Top-3 and the composed class.
      tau_k: temperature of Top-3's weights.
      query_only_sigma: width of Query-only's Gaussian.
      query_only_sigmas: other widths, of which the best is reported.
      judge: of pictures; points are judged exactly.
      methods: the ways to sample the adaptations, by name.
    """

    num_queries: int = 4
    per_class: int = 0
    seeds: tuple[int, ...] = ()
    samples: int = 8
    references: int = 100
    k: int = 3
    features: str = "judge"
    weights: str = ""
    class_guidance: float = 2.0
    tau_k: float = 1e-3
    query_only_sigma: float = 1.0
    query_only_sigmas: tuple[float, ...] = ()
    judge: Judge = Judge()
    methods: dict[str, Method] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses counts below one, widths that are none, and too few references for precision and recall."""
        counts = ("num_queries", "samples", "references", "k")
        require_positive(**{name: getattr(self, name) for name in counts})
        if self.references <= self.k:
            raise ValueError(
                f"references is {self.references}: precision and recall look for {self.k} neighbours of each "
                f"(config.evaluate.k), so use more than {self.k}."
            )
        for name in ("tau_k", "query_only_sigma", "query_only_sigmas"):
            values = getattr(self, name)
            if any(not value > 0 for value in (values if isinstance(values, tuple) else (values,))):
                raise ValueError(f"{name} is {values}: use positive numbers.")
        if len(set(self.seeds)) < len(self.seeds) or not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds is {self.seeds}: name each once, from 0 to {2**32 - 1}.")


PRODUCT = "product"
"""The method that draws from the product of experts itself, without the network."""


def learns_from_product(levels: Mapping[str, Any], name: str) -> bool:
    """Whether a level, or one that it goes on from, learns from samples of the product of experts.

    Examples:
      >>> learns_from_product({"embedding": teach}, "embedding")
      False
    """
    level = levels[name]
    return level.pool != "query" or (level.after != "" and learns_from_product(levels, level.after))


def needs_product(levels: Mapping[str, Any], methods: Mapping[str, Method], method: str) -> bool:
    """Whether a method means nothing for a query whose discovery found no modes to multiply.

    Examples:
      >>> needs_product({"embedding": teach}, {"mine": Method(level="embedding")}, "mine"), needs_product({}, {}, "poe")
      (False, True)
    """
    own = methods.get(method)
    if own is None:
        return method in ("poe", PRODUCT)
    return own.teacher_weight > 0 or learns_from_product(levels, own.level)


def with_baselines(
    levels: Mapping[str, Any], methods: Mapping[str, Method]
) -> tuple[dict[str, Any], dict[str, Method]]:
    """Adaptations and the ways to sample them, with those beside them that know the query alone.

    Beside an adaptation that learns from samples of the product stands the same one on the query, "NAME_query" (as
    DreamBooth does, Ruiz et al. 2023), and beside a class embedding that starts at a trained class one that starts at
    noise, "inversion": textual inversion (Gal et al. 2023). Each has the budget of what it stands beside, except that a
    start at noise has no candidates.

    Args:
      levels: `AdaptOptions` by name.
      methods: by name; a level that none samples gets nothing beside it.

    Examples:
      >>> level = dataclasses.replace(teach, start="top1")
      >>> levels, methods = with_baselines({"embedding": level}, {"mine": Method(level="embedding")})
      >>> sorted(levels), sorted(methods)
      (['embedding', 'inversion'], ['inversion', 'mine'])
    """
    more, ways = dict(levels), dict(methods)
    for name, level in levels.items():
        if level.pool != "query":
            new, alone = f"{name}_query", dataclasses.replace(level, pool="query")
        elif level.start == "top1" and level.rank == 0 and level.space == "free" and not level.after:
            new, alone = "inversion", dataclasses.replace(level, start="normal", candidates=1)
        else:
            continue
        sampled = [method for method in methods.values() if method.level == name]
        if sampled and new not in more:
            more[new], ways[new] = alone, dataclasses.replace(sampled[0], level=new)
    return more, ways
