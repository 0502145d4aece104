"""What `import cdisc` offers: one function for each step of the method, for any model."""

import ast
import contextlib
import dataclasses
import errno
import io
import json
import pathlib
import subprocess
import sys
import types
import unittest.mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny import ONE_LEVEL, random_params

import cdisc
from cdisc import storage
from cdisc.app import checkpoints, containers
from cdisc.data import pictures
from cdisc.diffusion import exact, parameterization, schedule
from cdisc.diffusion.gaussian import Gaussian
from cdisc.errors import UserError
from cdisc.learning.adapt import Adaptation
from cdisc.networks import interop
from cdisc.networks.backbone import null_eps
from cdisc.networks.lora import Adapter

NOISE = schedule.linear_beta()
QUERY = np.array([1.0, 1.0], np.float32)
FEW = {"timesteps": (50, 200), "starts_per_t": 4, "lanes": 8, "capacity": 8, "probes": 2}


def eps(x, t):
    """Two cells, each of which matches the query in one coordinate."""
    means = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    return exact.mixture_eps(exact.GaussianMixture(jnp.full(2, 0.5), means, jnp.full((2, 2), 0.01)), NOISE)(x, t)


def score(x, t):
    return parameterization.score_from_eps(NOISE, eps(x, t), t)


@pytest.fixture(scope="module")
def found() -> cdisc.Found:
    return cdisc.discover(QUERY, eps, **FEW)


def test_import_loads_nothing_and_dir_shows_every_name():
    # Catches: an import at the top of the facade, which every command would wait for.
    code = "import sys, cdisc; print('jax' in sys.modules, *(m for m in sys.modules if m[:6] == 'cdisc.'), *dir(cdisc))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == ["False", *sorted(["__version__", *cdisc.__all__])]


def test_the_two_lists_of_names_agree_and_every_name_is_there():
    tree = ast.parse(pathlib.Path(cdisc.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = [node for node in block.body if node.module.startswith("cdisc.")]
    assert sorted(alias.name for node in listed for alias in node.names) == cdisc.__all__
    assert all(getattr(cdisc, name).__doc__ for name in cdisc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'discovr'"):
        _ = cdisc.discovr


def test_from_picture_to_samples_takes_eight_lines():
    lines = [line.strip() for line in cdisc.__doc__.splitlines()[2:] if line.startswith("    ")]
    code = [line for line in lines if line]
    assert len(code) <= 8
    ast.parse("\n".join(code))
    assert code[0] == "import cdisc"


def test_a_picture_is_read_only_where_the_factors_are_known(found):
    with pytest.raises(ValueError, match="the factors of this model's classes are not known"):
        cdisc.compose(found, eps)


def test_the_plane_composes(found):
    # Catches: a key, a query or settings that do not reach the discovery.
    assert repr(found).startswith("<2 concepts of ")
    np.testing.assert_allclose(found.product.mean, QUERY, atol=0.1)
    other = cdisc.discover(QUERY, eps, seed=1, **FEW)
    assert not np.array_equal(other.discovery.pool.m, found.discovery.pool.m)


def predicted(model, x, t):
    """The noise that a model predicts."""
    return null_eps(model.backbone, model.params)(x, t)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1], kernel_init=nn.initializers.ones)(x) * (t / 1000.0)[:, None]


def linen():
    module = Linen()
    params = module.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))
    return cdisc.model(module.apply, params=params)


class Nnx(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(2, 2, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))

    def __call__(self, x, t):
        return self.dense(x) * (t / 1000.0)[:, None]


def equinox():
    eqx = pytest.importorskip("equinox")

    class Network(eqx.Module):
        weight: jax.Array

        def __call__(self, x, t):
            return x @ self.weight * (t / 1000.0)[:, None]

    return Network(jnp.ones((2, 2)))


@pytest.mark.parametrize("make", [linen, Nnx, equinox], ids=lambda make: make.__name__)
def test_networks_of_any_library_are_models(make):
    # Catches: parameters that are not handed on, a call with other arguments. The three compute the same function.
    given = make()
    model = given if isinstance(given, cdisc.Model) else cdisc.model(given)
    x, t = jnp.array([[1.0, 2.0], [0.5, 0.0]]), jnp.array([500, 250])
    np.testing.assert_allclose(predicted(model, x, t), [[1.5, 1.5], [0.125, 0.125]], rtol=1e-5)


@pytest.mark.parametrize("predicts", ["score", "v_prediction", "sample"])
def test_whatever_a_model_predicts_its_noise_is_the_same(predicts):
    # Catches: a conversion left out, or the inverse one.
    def predict(x, t):
        if predicts == "score":
            return score(x, t)
        turn = parameterization.v_from_eps if predicts == "v_prediction" else parameterization.x0_from_eps
        return turn(NOISE, x, eps(x, t), t)

    x, t = jnp.array([[1.0, 2.0], [0.5, 0.0]]), jnp.array([500, 50])
    ours = predicted(cdisc.model(predict, predicts=predicts), x, t)
    np.testing.assert_allclose(ours, eps(x, t), rtol=1e-3, atol=1e-4)


def test_samples_follow_from_what_was_found_and_the_seed(found):
    # Catches: the same samples for all seeds, for all products, or without the product's guidance.
    model = cdisc.model(eps)
    samples = cdisc.sample(found, model, 8)
    assert samples.shape == (8, 2)
    np.testing.assert_array_equal(samples, cdisc.sample(found.product, model, 8))
    np.testing.assert_allclose(samples, cdisc.sample(found.concepts, model, 8), atol=1e-3)
    assert not np.array_equal(samples, cdisc.sample(found, model, 8, seed=1))
    null = cdisc.sample(found, model, 8, guidance=0.0)
    ends = np.abs(np.asarray(null)[:, None] - np.array([[0.0, 1.0], [1.0, 0.0]])).max(-1).min(1)
    assert (ends < 0.4).all()  # the two cells of the unguided density
    assert not np.allclose(samples, null)


def test_mistakes_are_sentences(found, tmp_path):
    model = cdisc.model(eps)
    refused = [
        (lambda: cdisc.discover(QUERY, 3), TypeError, "the model is int: give what cdisc.load returned"),
        (lambda: cdisc.discover(QUERY, lambda x, t: x[0], **FEW), ValueError, "it must return one of that shape"),
        (lambda: cdisc.discover(QUERY, model, num_expert=3), ValueError, "did you mean 'num_experts'"),
        (lambda: cdisc.discover(np.array(["a"]), model), TypeError, "give a picture or a point as numbers"),
        (lambda: cdisc.discover(np.full(2, np.nan), model), ValueError, "entries that are not finite"),
        (lambda: cdisc.discover(np.zeros((1, 2, 2, 3)), model), ValueError, r"give one picture \(H, W, C\)"),
        (lambda: cdisc.discover("a.png", model), ValueError, "give an array"),
        (lambda: cdisc.model(eps, predicts="eps"), ValueError, "predicts has 'eps'"),
        (lambda: cdisc.sample(3, model), TypeError, "int cannot be sampled"),
        (lambda: cdisc.adapt(found, model), ValueError, "no place for a class embedding"),
        (lambda: cdisc.load("digit"), UserError, 'or "digits", "faces" or "letters"'),
        (lambda: cdisc.example("digits", "digit=11"), UserError, "does not exist"),
        (lambda: cdisc.restore(tmp_path / "none"), UserError, "does not exist"),
        (lambda: cdisc.save(tmp_path / "x", eps), TypeError, "function cannot be saved"),
    ]
    for call, kind, sentence in refused:
        with pytest.raises(kind, match=sentence):
            call()


def test_pictures_come_as_files_images_bytes_and_numbers(tmp_path, capsys):
    # Catches: bytes taken for numbers in [-1, 1]; an image whose size is not the model's.
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    like = cdisc.Model("any", cdisc.model(eps).backbone, None, NOISE, (8, 8, 3), cdisc.model(eps).config)
    expected = pixels / 127.5 - 1.0
    for of in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels, expected):
        got = cdisc.picture(of, like)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"give one of \(8, 8, 3\)"):
        cdisc.picture(pixels[:4], like)
    # Catches: an image that is neither turned nor fitted as its file would be; bytes as numbers of another type.
    image = Image.fromarray(np.kron(pixels, np.ones((2, 4, 1), np.uint8)))
    image.getexif()[0x0112] = 3
    image.save(tmp_path / "b.png", exif=image.getexif())
    with Image.open(tmp_path / "b.png") as again:
        np.testing.assert_array_equal(cdisc.picture(again, like), cdisc.picture(tmp_path / "b.png", like))
    for kind in (np.float32, np.int64):
        with pytest.raises(ValueError, match=r"values up to 2\d\d: give a picture in \[-1, 1\], or bytes"):
            cdisc.picture(pixels.astype(kind), like)
    capsys.readouterr()
    cdisc.picture(pixels / 255.0, like)
    assert "no value below 0, and black is -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "attributes", "ground"),
    [
        ("digits", "digit=3 digit_colour=pink background=dark_purple", (75, 0, 110)),
        ("letters", "character=K style=italic ink=pink ground=navy", (0, 0, 110)),
    ],
)
def test_the_example_is_the_composition_that_was_asked_for(what, attributes, ground):
    # Catches: an example of another size than the network's, of another composition; one picture whatever the index.
    query = cdisc.example(what, attributes)
    assert query.shape == (32, 32, 3)
    np.testing.assert_allclose(pictures.to_uint8(query)[0, 0], ground)
    assert not np.array_equal(query, cdisc.example(what, attributes, 1))


@pytest.mark.parametrize(("what", "trained"), [("digits", 120), ("faces", 72), ("letters", 153)])
def test_what_comes_with_cdisc_is_loaded_with_its_classes(what, trained):
    # Catches: a network beside the factors of another one's classes, so that `compose` reads nonsense.
    model = cdisc.load(what)
    assert model.shape == (32, 32, 3)
    assert len(model.split.trained) == len(model.backbone.table(model.params)) == trained


def test_a_folder_of_diffusers_is_found_learnt_and_sampled(tmp_path):
    # Catches: a null class that is not moved to its row, settings of another level, the folder's clip.
    network = dataclasses.replace(ONE_LEVEL, patch_size=1)
    params = random_params(network)
    interop.save(tmp_path, network, params, interop.SchedulerConfig(clip=0.5))
    model = cdisc.load(tmp_path, null_class=1)
    assert "of (8, 8, 3)" in repr(model)
    (table,) = (np.asarray(leaf) for leaf in jax.tree.leaves(params["class_embedding"]))
    np.testing.assert_allclose(model.backbone.null(model.params), table[1], rtol=1e-6)
    query = np.zeros((8, 8, 3), np.float32)
    learnt = cdisc.adapt(query, model, steps=2, batch_size=2)
    assert learnt.embedding.shape == table[1].shape
    samples = cdisc.sample(learnt, model, 2)
    assert samples.shape == (2, 8, 8, 3)
    assert float(jnp.abs(samples).max()) <= 0.5 + 1e-6
    with pytest.raises(ValueError, match="level 'lora' learns from samples of the product"):
        cdisc.adapt(query, model, "lora")


def same(one, other) -> None:
    """Asserts that two trees are of the same classes and hold the same arrays."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_containers_come_back_without_a_like(found, tmp_path):
    # Catches: types that are cast, tuples that become lists, static fields that are lost.
    learnt = Adaptation(jnp.arange(3.0), Adapter({"conv": {"a": jnp.ones((2, 1)), "b": jnp.zeros((1, 2))}}, scale=2.0))
    library = cdisc.collect({"one": found.concepts})
    for content in (found, library, learnt, {"a": [1, 2.5, None, (True, "x")], "b": jnp.arange(3)}, ONE_LEVEL):
        cdisc.save(tmp_path / "kept", content)
        again = cdisc.restore(tmp_path / "kept")
        assert type(again) is type(content)
        same(content, again)
    assert repr(library) == "<library of 2 concepts of shape (2,)>"
    assert library == library.replace(experts=library.experts)


@dataclasses.dataclass
class Foreign:
    """A container that is none of cdisc's."""

    what: str


def test_what_a_stage_leaves_is_a_checkpoint_that_says_what_it_holds(found, tmp_path):
    # Catches: arrays without entries, which Orbax does not save; the tree of another version taken for one of ours.
    path, content = tmp_path / "query_0000", {"result": found, "none": np.zeros((0, 3), np.float32), "of": {"run": "x"}}
    containers.checkpoint(path, content)
    again = cdisc.restore(path)
    same(again["result"], found)
    assert again["none"].shape == (0, 3) and again["none"].dtype == np.float32 and again["of"] == {"run": "x"}
    cdisc.save(tmp_path / "kept", content)
    assert cdisc.restore(tmp_path / "kept")["none"].shape == (0, 3)
    for about, said in (({"data": "d", "seed": 0}, "cannot be read to its end"), (None, "is a checkpoint of training")):
        checkpoints.save(path, {"x": np.ones(2)}, about)
        with pytest.raises(UserError, match=f"query_0000 {said}"):
            cdisc.restore(path)


def test_files_that_are_not_what_was_saved_are_refused(found, tmp_path):
    path = tmp_path / "kept"
    cdisc.save(path, found)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="it is damaged"):
            cdisc.restore(path)
    for name in (
        "os:system",
        f"{__name__}:Foreign",
        "cdisc.app.notebook:load",
        "cdisc.app.nowhere:Found",
        "cdisc.app.notebook:Fount",
    ):
        with path.open("wb") as file:
            np.savez(file, tree=np.asarray(json.dumps({"class": name, "fields": {"what": "x"}})))
        with pytest.raises(UserError, match="cannot be read"):
            cdisc.restore(path)


def test_no_byte_of_a_file_can_change_what_is_restored(tmp_path):
    # Catches: a reader that stops before the archive's checksum is compared, an entry that has none.
    path, content = tmp_path / "kept", {"x": np.arange(3.0, dtype=np.float32), "of": [7, None]}
    cdisc.save(path, content)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with contextlib.suppress(storage.DamagedError):
            again = cdisc.restore(path)
            assert again["of"] == content["of"]
            np.testing.assert_array_equal(again["x"], content["x"])
    path.write_bytes(whole)
    np.testing.assert_array_equal(cdisc.restore(path)["x"], content["x"])


def test_a_file_whose_disk_does_not_answer_is_not_damaged(tmp_path, monkeypatch):
    # Catches: the advice to delete it.
    cdisc.save(tmp_path / "kept", [1])
    stale = OSError(errno.ESTALE, "Stale file handle")
    monkeypatch.setattr(pathlib.Path, "read_bytes", unittest.mock.Mock(side_effect=stale))
    with pytest.raises(UserError, match=r"kept cannot be read \(.*Stale file handle\): see that its disk"):
        cdisc.restore(tmp_path / "kept")


def test_drawings_are_pictures_of_what_they_are_given(found):
    # Catches: a drawing that a notebook does not show, and one of other pictures.
    for drawing in (cdisc.plot.concepts(found), cdisc.plot.pictures(jnp.zeros((5, 2)))):
        assert drawing._repr_png_().startswith(b"\x89PNG")
    assert found._repr_html_().startswith('<img src="data:image/png;base64,')
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    drawn = np.asarray(Image.open(io.BytesIO(cdisc.plot.pictures(images)._repr_png_())).convert("RGB"))
    np.testing.assert_allclose(drawn[:16, :16], pictures.to_uint8(images[0]).repeat(2, 0).repeat(2, 1), atol=1)


def test_concepts_of_a_picture_are_drawn():
    rng = np.random.default_rng(0)
    shares = rng.uniform(size=(2, 8, 8, 3)).astype(np.float32)
    picked = cdisc.Concepts(Gaussian(jnp.zeros((2, 8, 8, 3)), jnp.ones((2, 8, 8, 3))), jnp.asarray(shares))
    found = types.SimpleNamespace(query=jnp.zeros((8, 8, 3)), concepts=picked, product=picked.product())
    titles = [axis.get_title() for axis in cdisc.plot.concepts(found).axes]
    assert titles[:4] == ["query", "product", "concept 0", "concept 1"]
    assert f"owns {shares[1].mean():.0%}" in titles
