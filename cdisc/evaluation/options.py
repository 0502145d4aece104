"""What is drawn for each query, how its adaptations are sampled, and what judges the samples."""

import dataclasses

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
      samples: of each method for each query.
      references: other pictures of the query's composition.
      k: neighbours of precision and recall.
      class_guidance: of Top-1 and Top-3.
      tau_k: temperature of Top-3's weights.
      query_only_sigma: width of Query-only's Gaussian.
      query_only_sigmas: other widths, of which the best is reported.
      judge: of pictures; points are judged exactly.
      methods: the ways to sample the adaptations, by name.
    """

    num_queries: int = 4
    samples: int = 8
    references: int = 100
    k: int = 3
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
