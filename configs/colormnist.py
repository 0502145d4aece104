"""ColorMNIST: a digit in one colour on a ground of another, 40 of 160 compositions never trained.

Command:  python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/colormnist
Time:     165 to 175 s on two CPU cores the first time, about half of it compilation; from_scratch adds about an hour
Figures:  class-conditional samples right in 91% (guidance 1) and 99% (2); over 4 queries, joint accuracy and recall
          0.75 / 0.53 for the new class embedding, 0.75 / 0.55 for LoRA after it, 0.78 / 0.01 for the product of
          experts, 0.78 / 0.00 for Query-only; over 40 queries (`:study`) see docs/results.md

Variants: the file alone is the paper's setting (arXiv 2605.07078; for a GPU or a TPU), `:small` runs on two CPU cores
from a bundled backbone, `:study` is the same on all 40 held-out classes with more steps, `:tiny` trains a toy backbone
from scratch within two minutes, for tests.
"""

import ml_collections

VARIANTS = ("paper", "small", "study", "tiny")


def _section(**fields) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(fields)


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The configuration: "paper", "small", "study" or "tiny"."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/colormnist.py has no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = _section(
        name="colormnist",
        source="bundled",  # 10,000 digits that come with cdisc; "idx" or "tfds" read your own MNIST from root
        root="",
        seed=0,  # of the partition into training, query and reference digits
        # RGB in 0..255. The paper does not publish its palette: this one is ours.
        digit_colours=_section(yellow=(255, 225, 25), green=(60, 200, 75), cyan=(70, 220, 240), pink=(250, 120, 200)),
        backgrounds=_section(
            deep_red=(120, 0, 20), navy=(0, 0, 110), dark_purple=(75, 0, 110), dark_brown=(85, 50, 15)
        ),
        held_out=(  # write factor=value; a factor left out means all of its values
            "digit_colour=cyan background=deep_red",
            "digit_colour=green background=navy",
            "digit_colour=pink background=dark_purple",
            "digit_colour=yellow background=dark_brown",
        ),
    )
    c.diffusion = _section(num_timesteps=1000, beta_start=1e-4, beta_end=2e-2, prediction_type="epsilon")
    # google/ddpm-cifar10-32, with the class table of 120 trained classes and the null class.
    c.network = _section(
        kind="unet",
        sample_size=32,
        in_channels=3,
        out_channels=3,
        num_class_embeds=121,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        add_attention=True,
        attention_head_dim=None,  # one head
        norm_num_groups=32,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        patch_size=1,
        dtype="bfloat16",
        remat=False,  # computes activations anew in a gradient instead of keeping them
    )
    c.pretrain = _section(
        seed=0,  # of the weights; config.seed is the other stages'
        from_scratch=True,
        bundle="",  # the name of a bundled backbone that is used unless from_scratch
        restore="",  # the workdir of another run, whose backbone is taken
        steps=46875,  # 100 epochs of 120,000 pictures
        batch_size=256,
        accumulate=1,  # micro-batches that a batch is divided into, where memory is short
        learning_rate=2e-4,
        warmup_steps=500,
        decay_steps=1,
        weight_decay=1e-6,
        clip_norm=1.0,
        ema_decay=0.9999,
        null_dropout=0.1,
        loss="eps",  # "v" weighs high noise more, where the colours and the class are decided
        save_every=1000,  # steps between checkpoints, each with a validation loss
        keep=2,  # how many of them are kept, the best one aside
        result="last",  # or "best": the averaged parameters of the smallest validation loss
        samples_every=2500,  # steps between pictures of samples, in pretrain/samples; 0 draws none
    )
    c.discover = _section(
        timesteps=tuple(range(50, 401, 25)),
        starts_per_t=128,
        rounds=1,  # parts of these, one after the other, where memory is short
        start_mode="hybrid",
        ascent="adam",  # "mean_shift" needs no step size and stops by itself
        learning_rate=0.1,
        max_steps=150,
        tolerance=1e-3,  # residual: root mean square of eps, whose own scale is one
        max_residual=0.1,
        lanes=128,
        merge_radius=0.1,  # root mean square distance of clean prototypes
        capacity=128,
        curvature_iterations=8,
        max_curvature=float("inf"),  # the paper keeps saddles
        probes=4,
        estimator="hutchinson",
        covariance="posterior",
        delta=1e-3,
        floor=1e-3,
        num_experts=3,
        tau=0.5,
        one_per_t=False,
        background_mean=0.0,
        background_variance=1.0,
        hierarchy=(),  # noise levels through which the modes are followed, from fine to coarse
    )
    c.guidance = _section(w0=1.2, w_max=2.0, elementwise=False)  # of the teacher, Eq. 14
    c.sampling = _section(
        num_steps=50,
        clip=1.0,
        batch=64,  # pictures of a device at once, each of them under the null model and a method's classes
    )
    c.adapt = _section(
        pool_size=256,  # samples of the teacher to learn from
        guidance=_section(w0=1.2, w_max=2.0, elementwise=False),  # of the teacher in these samples
        prior_size=256,  # pictures of trained classes for prior preservation
        class_draws=32,  # noisy copies of the query on which the trained classes are compared
        chunk=16,  # queries whose adapters are trained side by side on a device
        levels=_section(
            embedding=_level(pool="query", start="top1", steps=150, batch_size=32),
            # Eq. 15 as published: ten epochs over the pool.
            lora=_level(pool="teacher", rank=8, alpha=16.0, steps=160, batch_size=16, embedding_learning_rate=1e-3),
        ),
    )
    c.evaluate = _section(
        num_queries=40,  # held-out compositions, in an order drawn by the seed
        samples=48,
        references=100,  # other pictures of the composition
        k=3,  # neighbours of precision and recall
        class_guidance=2.0,  # of Top-1 and Top-3
        tau_k=1e-3,  # temperature of Top-3's weights
        query_only_sigma=1.0,
        query_only_sigmas=(0.05, 0.1, 0.2, 0.4),  # of which the best is reported
        judge=_section(  # trained on real pictures alone
            seed=0,
            pictures=20_000,
            steps=3000,
            bundle="",  # the name of a bundled one, used where it was trained like this and on these data
        ),
        methods=_section(
            embedding=_method(level="embedding", guidance=2.0),
            lora=_method(level="lora", guidance=0.8),
        ),
    )
    if variant == "small":
        _small(c)
    if variant == "study":
        _small(c)
        _study(c)
    if variant == "tiny":
        _small(c)
        _tiny(c)
    return c


def _level(**fields) -> ml_collections.ConfigDict:
    """A level of adaptation (`learning.adapt.AdaptOptions`)."""
    defaults = {
        "pool": "query",
        "start": "normal",
        "after": "",
        "candidates": 1,
        "space": "free",
        "l1": 0.0,
        "rank": 0,
        "alpha": 0.0,
        "learning_rate": 1e-3,
        "embedding_learning_rate": 5e-2,
        "block_learning_rate": 3e-2,
        "decay": False,
        "null_dropout": 0.1,
        "loss": "eps",
        "prior_weight": 0.0,
    }
    return _section(**(defaults | fields))


def _method(**fields) -> ml_collections.ConfigDict:
    """A way to sample a level of adaptation (`cdisc.app.options.MethodOptions`)."""
    return _section(**({"guidance": 2.0, "teacher_weight": 0.0, "teacher_sigma_min": 0.0} | fields))


def _small(c: ml_collections.ConfigDict) -> None:
    """Two CPU cores: a network of 1.8 M parameters on 2x2 patches, and a budget of seconds for each query."""
    c.network.update(
        block_out_channels=(48, 80, 80),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=16,
        norm_eps=1e-5,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        patch_size=2,
        dtype="float32",
    )
    # The eps loss learns colours and classes last: after 5,000 steps 4% of the samples showed their class.
    c.diffusion.prediction_type = "v_prediction"
    c.pretrain.update(
        loss="v",
        from_scratch=False,
        bundle="colormnist_small",
        steps=10_000,
        samples_every=1000,
        batch_size=32,
        learning_rate=1e-3,
        warmup_steps=500,
        decay_steps=3000,
        ema_decay=0.999,
    )
    c.discover.update(
        timesteps=(50, 100, 150, 200, 300, 400),
        starts_per_t=4,
        ascent="mean_shift",
        max_steps=30,
        tolerance=0.005,
        max_residual=0.05,
        lanes=12,
        capacity=24,
        # The paper's 3 leave parts of a stroke to prototypes of another colour: over 40 queries, the product's mean was
        # right in 0.70 of them with 3 modes, in 0.93 with 8, and in 0.98 with 8 modes or saddles.
        num_experts=8,
        probes=16,
        estimator="lattice",
    )
    c.sampling.num_steps = 16  # right as often as with 25, over 20 queries
    # One query at a time: on a CPU, convolutions with a kernel for each query are slower than one after the other.
    c.adapt.update(pool_size=8, prior_size=128, class_draws=4, chunk=1)
    c.adapt.levels = _section(
        embedding=_level(
            pool="query",
            start="top1",
            candidates=2,
            steps=24,
            batch_size=16,
            embedding_learning_rate=3e-2,
            decay=True,
            null_dropout=0.0,
        ),
        lora=_level(
            pool="both",
            after="embedding",
            rank=4,
            alpha=8.0,
            steps=10,
            batch_size=16,
            learning_rate=2e-3,
            embedding_learning_rate=1e-2,
        ),
        # A class embedding for each residual block. It was tried on faces alone (configs/avatars.py).
        blocks=_level(
            pool="query",
            start="top1",
            space="per_block",
            steps=60,
            batch_size=16,
            embedding_learning_rate=3e-2,
            block_learning_rate=3e-2,
            decay=True,
            null_dropout=0.0,
        ),
    )
    c.evaluate.update(
        num_queries=4,
        samples=8,
        references=100,
        class_guidance=3.0,  # the trained classes' samples carry their class in 99% at 2 and 91% at 1
        query_only_sigmas=(0.1, 0.3),
    )
    c.evaluate.judge.bundle = "colormnist_small_judge"
    c.evaluate.methods = _section(
        embedding=_method(level="embedding", guidance=2.0),
        lora=_method(level="lora", guidance=2.0),
        blocks=_method(level="blocks", guidance=2.0),
    )


def _study(c: ml_collections.ConfigDict) -> None:
    """The small network on every held-out class, all levels, several guidances: for figures instead of a first look."""
    # From `:small`'s pool the product is right in 0.95 of its samples, from this one in 0.98.
    c.discover.update(
        timesteps=(50, 100, 150, 200, 250, 300, 350, 400), starts_per_t=6, max_steps=40, lanes=16, capacity=32
    )
    c.sampling.num_steps = 25
    c.adapt.update(pool_size=16, class_draws=8)
    levels = c.adapt.levels
    levels.embedding.update(candidates=3, steps=40)
    # From N(0, 0.01^2): textual inversion.
    levels.inversion = levels.embedding.copy_and_resolve_references()
    levels.inversion.update(start="normal", candidates=1)
    levels.span = levels.embedding.copy_and_resolve_references()
    levels.span.update(space="span", l1=1e-3, candidates=1)
    levels.lora.update(steps=24, prior_weight=1.0)
    c.evaluate.update(num_queries=40, samples=16, query_only_sigmas=(0.05, 0.1, 0.2, 0.4))
    c.evaluate.methods.update(
        embedding_w1=_method(level="embedding", guidance=1.0),
        embedding_w3=_method(level="embedding", guidance=3.0),
        inversion=_method(level="inversion", guidance=2.0),
        span=_method(level="span", guidance=2.0),
        embedding_poe=_method(level="embedding", guidance=2.0, teacher_weight=0.4, teacher_sigma_min=0.8),
        lora_w3=_method(level="lora", guidance=3.0),
    )


def _tiny(c: ml_collections.ConfigDict) -> None:
    """Everything from scratch in under two minutes: right in all but quality."""
    c.network.update(
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        attention_head_dim=8,
        patch_size=4,
    )
    c.pretrain.update(
        from_scratch=True,
        bundle="",
        steps=60,
        batch_size=16,
        warmup_steps=10,
        decay_steps=20,
        save_every=25,
        samples_every=30,
    )
    c.discover.update(
        timesteps=(100, 400),
        starts_per_t=4,
        max_steps=8,
        max_residual=float("inf"),
        lanes=8,
        capacity=8,
        curvature_iterations=2,
        probes=2,
    )
    c.sampling.num_steps = 4
    c.adapt.update(pool_size=8, prior_size=8, class_draws=1, chunk=2)
    for level in c.adapt.levels.values():
        level.update(steps=3, batch_size=4)
    c.evaluate.update(num_queries=2, samples=8, references=8)
    c.evaluate.judge.update(pictures=500, steps=30, bundle="")
