"""The account of a configuration, against counts by hand and the arrays themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from commands import config_of

from cdisc.app import dry_run
from cdisc.app.config import read
from cdisc.diffusion.schedule import linear_beta
from cdisc.errors import UserError
from cdisc.learning import cost, pretrain
from cdisc.networks import backbone, denoiser

SCHEDULE = linear_beta(1000)
OPTIONS = pretrain.PretrainOptions(
    steps=10,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=4,
    decay_steps=1,
    weight_decay=1e-4,
    clip_norm=1.0,
    ema_decay=0.9,
    null_dropout=0.1,
    loss="eps",
)
# One block and no attention: what is counted is compiled anew for every count.
NETWORK = dataclasses.replace(tiny.ONE_LEVEL, block_out_channels=(16,), add_attention=False)
MODEL = backbone.unet(NETWORK, SCHEDULE)
CHIP = cost.Chip(flops={"bfloat16": 100.0, "float32": 50.0}, bandwidth=10.0, memory=1000.0, interconnect=5.0)


def test_the_operations_of_a_product_are_those_counted_by_hand():
    a, b = jax.ShapeDtypeStruct((3, 50), jnp.float32), jax.ShapeDtypeStruct((50, 7), jnp.float32)
    program, _ = cost.account(lambda a, b: jax.jit(jnp.matmul)(a, b) + 1.0, a, b)
    assert program.flops == 2 * 3 * 50 * 7 + 3 * 7
    # The program's own, and those of the product in it.
    assert program.traffic == 2 * 4 * (3 * 50 + 50 * 7 + 3 * 7)


@pytest.fixture(scope="module")
def whole():
    return cost.training(NETWORK, MODEL, OPTIONS, SCHEDULE, 1)


def test_what_training_keeps_is_what_its_arrays_take(whole):
    params = tiny.random_params(NETWORK)
    state = pretrain.TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=params, opt_state=pretrain.optimizer(OPTIONS).init(params)
    )
    numbers = jnp.zeros(8, jnp.int32)
    pictures = jnp.zeros((8, 8, 8, 3))
    drawn = pretrain.StepNoise(dropped=numbers > 0, t=numbers, noise=pictures)
    arrays = jax.tree.leaves((state, pretrain.zero_total(params), (pictures, numbers), drawn))
    assert whole.kept == sum(leaf.nbytes for leaf in arrays)
    assert whole.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    # A gradient cannot do without the activations that it goes back through.
    assert whole.temporaries > 8 * 4 * 4 * 8 * 4


def test_devices_and_micro_batches_share_a_batch(whole):
    """Three devices take three pictures each, one of them padding, and two micro-batches two pictures at a time."""
    options = dataclasses.replace(OPTIONS, accumulate=2)
    shared = cost.training(NETWORK, MODEL, options, SCHEDULE, 3)
    assert shared.gradient.flops == pytest.approx(whole.gradient.flops / 4, rel=0.1)
    assert shared.flops == 3 * (2 * shared.gradient.flops + shared.update.flops)
    assert shared.update.flops == whole.update.flops
    assert shared.temporaries < whole.temporaries
    picture = (2 * 8 * 8 * 3 + 2) * 4 + 1
    assert whole.kept - shared.kept == 4 * picture


def test_a_gradient_costs_three_evaluations_and_four_where_it_keeps_nothing(whole):
    single, _ = cost.evaluation(NETWORK, MODEL, 8)
    assert 2.5 < whole.gradient.flops / single.flops < 3.3
    again = dataclasses.replace(NETWORK, remat=True)
    remat = cost.training(again, backbone.unet(again, SCHEDULE), OPTIONS, SCHEDULE, 1)
    # The stem, the head and the time embedding lie outside of the blocks.
    assert 0.6 < (remat.gradient.flops - whole.gradient.flops) / single.flops < 1.1


def test_the_chips_are_within_what_chips_are():
    # Catches: a digit or a unit lost. A product needs 100 to 300 operations a byte to keep such a chip busy.
    for name, chip in cost.CHIPS.items():
        assert 100 < chip.flops["bfloat16"] / chip.bandwidth < 320, name
        assert 0.4 < chip.flops["float32"] / chip.flops["bfloat16"] <= 1.0, name
        assert 16e9 < chip.memory < 100e9, name
        assert 0.1 < chip.interconnect / chip.bandwidth < 0.5, name


def test_the_roofline_is_the_slower_of_the_two(monkeypatch):
    monkeypatch.setattr(cost, "EFFICIENCY", 0.5)
    program = cost.Program(flops=600.0, traffic=40.0)
    assert CHIP.seconds(program, "bfloat16") == 12.0
    assert CHIP.seconds(program, "float32") == 24.0
    assert CHIP.seconds(dataclasses.replace(program, traffic=130.0), "bfloat16") == 13.0


def test_a_step_is_its_micro_batches_its_update_and_the_sum_over_devices(monkeypatch):
    monkeypatch.setattr(cost, "EFFICIENCY", 0.5)
    gradient, update = cost.Program(flops=600.0, traffic=0.0), cost.Program(flops=0.0, traffic=10.0)
    step = cost.Training(
        parameters=25, kept=7, temporaries=3, gradient=gradient, update=update, micro_batches=3, devices=1
    )
    assert step.seconds(CHIP, "bfloat16") == 3 * 12.0 + 1.0
    # A ring of four: each sends one and a half times the 100 bytes of the gradient, and receives as much.
    step = dataclasses.replace(step, devices=4)
    assert step.seconds(CHIP, "bfloat16") == 3 * 12.0 + 1.0 + 300 / 5.0
    assert step.flops == 4 * 3 * 600.0


def test_the_evaluations_of_a_query_are_those_counted_by_hand():
    config = config_of("colormnist.py", "tiny")
    expected = {
        # 8 chains of 8 steps; 8 modes, linearised once for their curvature (2) and their probes (2).
        "discover": 8 * 8 + 8 * (1 + 2 + 2),
        # 120 classes, a pool of 8 in 4 steps, two candidates and LoRA of 3 steps of 4 pictures.
        "adapt": 120 + 8 * 4 + 3 * (2 * 3 * 4 + 3 * 4),
        # Two guided levels, one of them at two weights, the teacher, Top-1, a composed class, Top-3 and Query-only at
        # three widths: 8 samples of 4 steps.
        "evaluate": 8 * 4 * (3 * 2 + 1 + 2 + 2 + 4 + 3),
    }
    assert dry_run.evaluations(read(config), 120) == expected
    unknown = dry_run.evaluations(read(config), None)
    assert unknown == expected | {"adapt": expected["adapt"] - 120}


def test_the_pictures_at_once_follow_from_sizes_and_not_from_how_many_there_are():
    config = config_of("colormnist.py", "tiny")
    # 8 lanes; a batch of pairs of class and draw, more than the batches of 4 of two queries side by side; 8 samples of
    # the null model and Top-3's classes.
    expected = {"discover": 8, "adapt": 64, "evaluate": 4 * 8}
    assert dry_run.pictures_at_once(read(config), 120) == expected
    config.sampling.batch = 8
    expected = {"discover": 8, "adapt": 8, "evaluate": 4 * 8}
    config.evaluate.update(num_queries=4000, samples=1000)
    config.discover.starts_per_t = 500
    config.adapt.pool_size = 1000
    assert dry_run.pictures_at_once(read(config), 120) == expected
    config.sampling.batch = 3
    config.adapt.levels.lora.prior_weight = 1.0
    assert dry_run.pictures_at_once(read(config), 120) == {"discover": 8, "adapt": 2 * 4 * 2, "evaluate": 4 * 3}
    assert dry_run.pictures_at_once(read(config), 2)["evaluate"] == 2 * 3
    assert dry_run.pictures_at_once(read(config), None)["evaluate"] == 4 * 3
    # As many at 128x128 as the paper's devices had: with another configuration's chunk no chip has the memory.
    celeba = config_of("celeba.py")
    assert max(dry_run.pictures_at_once(read(celeba), 51).values()) <= 64
    assert dry_run.pictures_at_once(read(celeba), 51)["adapt"] <= 32


def test_a_dry_run_computes_nothing(monkeypatch):
    init = denoiser.init

    def abstract(network, key):
        assert isinstance(key, jax.core.Tracer)
        return init(network, key)

    monkeypatch.setattr(denoiser, "init", abstract)
    config = config_of("colormnist.py", "tiny")
    config.network.update(block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.network.num_class_embeds = None
    config.evaluate.num_queries = 3600
    lines = dry_run.report(read(config), 2).splitlines()
    assert "memory of each of 2 device(s)" in lines[2]
    assert "without a comparison with the data's classes (config.network.num_class_embeds" in lines[3]
    table = {line.split()[0]: line.split()[1:] for line in lines[-len(cost.CHIPS) :]}
    assert list(table) == list(cost.CHIPS)
    for rate, hours, query, queries, fits in table.values():
        # 60 steps, and 3,600 queries on two chips: an hour for each two seconds. To three digits.
        assert float(hours) == pytest.approx(60 / float(rate) / 3600, rel=0.01)
        assert float(queries) == pytest.approx(float(query) / 2, rel=0.01)
        assert fits == "yes"


@pytest.mark.parametrize(
    ("file", "variant", "devices", "message"),
    [
        ("colormnist.py", ("tiny",), 0, "--device_count is 0: use a whole number from 1 on"),
        ("mixture.py", (), 1, "this one is 'exact'"),
    ],
)
def test_what_has_no_cost_is_refused(file, variant, devices, message):
    with pytest.raises(UserError, match=message):
        dry_run.report(read(config_of(file, *variant)), devices)


def test_what_cannot_be_run_has_no_cost():
    config = config_of("colormnist.py", "tiny")
    config.adapt.chunk = 0
    with pytest.raises(UserError, match=r"config\.adapt\.chunk is 0"):
        dry_run.report(read(config), 1)
