"""The results file: what it takes, what it refuses and how it names the place."""

import copy
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from cdisc import errors, storage
from cdisc.app.report import results


def _measures(**extra: Any) -> dict[str, Any]:
    return {
        "joint_accuracy": 0.5,
        "attribute_accuracy": {"digit": 0.75, "background": None},
        "precision": 0.25,
        "recall": 0.0,
        "distance_to_query": 0.125,
        **extra,
    }


@pytest.fixture
def valid() -> dict[str, Any]:
    errors_of = {
        "joint_accuracy": 0.1,
        "attribute_accuracy": {"digit": 0.1},
        "precision": None,
        "recall": 0.0,
        "distance_to_query": 0.01,
    }
    return {
        "schema_version": results.SCHEMA_VERSION,
        "dataset": "planar",
        "data_hash": "def",
        "config_hash": "abc",
        "seed": -3,
        "versions": {"jax": "0.10"},
        "seconds": {"discover": 1.5},
        "queries": [
            {
                "name": "one",
                "attributes": {"digit": "4"},
                "source": "query digits",
                "prototypes": [{"t": 50, "basin": 7, "gain": 12.5, "curvature": -0.9, "residual": 1e-3}],
                "nfe": 2000,
                "methods": {"poe": _measures(samples=8)},
            },
            {"name": "two", "attributes": None, "source": "a.png", "prototypes": [], "nfe": 0, "methods": {}},
        ],
        "methods": {"poe": _measures(kid=-0.01, samples=8, queries=1, standard_error=errors_of)},
    }


def _put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = value

    return change


def _drop(*path: str | int) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]

    return change


def test_validate_takes_a_complete_file(valid: dict[str, Any]) -> None:
    before = copy.deepcopy(valid)
    results.validate(valid)
    assert valid == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("schema_version", value=1), "results.schema_version: must be 3, is 1"),
        (_put("seed", value=True), "results.seed: True is not of type 'integer'"),
        (_put("dataset", value=None), "results.dataset: None is not of type 'string'"),
        (_put("seconds", "discover", value=-1.0), "results.seconds.discover: -1.0 is less than the minimum of 0"),
        (_put("versions", "jax", value=10), "results.versions.jax: 10 is not of type"),
        (_put("queries", value={}), "results.queries: {} is not of type"),
        (_put("queries", 1, "nfe", value=-1), "results.queries[1].nfe: -1 is less than"),
        (_put("queries", 0, "attributes", "digit", value=4), "results.queries[0].attributes.digit: 4 is not"),
        (_put("queries", 0, "prototypes", 0, "t", value=0), "results.queries[0].prototypes[0].t: 0 is less"),
        (_put("queries", 0, "prototypes", 0, "gain", value=None), "results.queries[0].prototypes[0].gain: None"),
        (
            _put("queries", 0, "methods", "poe", "recall", value=1.5),
            "results.queries[0].methods.poe.recall: 1.5 is greater",
        ),
        (
            _put("queries", 0, "methods", "poe", "recall", value="1"),
            "results.queries[0].methods.poe.recall: '1' is not",
        ),
        (
            _drop("queries", 0, "methods", "poe", "samples"),
            "results.queries[0].methods.poe: 'samples' is a required property",
        ),
        (_put("methods", "poe", "f2", value=0.5), "results.methods.poe: Additional properties are not"),
        (
            _put("methods", "poe", "standard_error", "attribute_accuracy", "digit", value=-0.1),
            "results.methods.poe.standard_error.attribute_accuracy.digit: -0.1 is less",
        ),
        (
            _drop("queries", 0, "prototypes", 0, "residual"),
            "results.queries[0].prototypes[0]: 'residual' is a required",
        ),
        (_drop("methods"), "results: 'methods' is a required property"),
    ],
)
def test_validate_names_the_offending_path(valid: dict[str, Any], change: Callable[[Any], None], message: str) -> None:
    change(valid)
    with pytest.raises(ValueError) as caught:
        results.validate(valid)
    assert str(caught.value).startswith(message)


def test_validate_speaks_of_the_version_before_anything_else(valid: dict[str, Any]) -> None:
    del valid["dataset"]
    valid["schema_version"] = 9
    with pytest.raises(ValueError, match=r"^results\.schema_version"):
        results.validate(valid)


def test_validate_refuses_what_is_not_an_object() -> None:
    with pytest.raises(ValueError, match=r"^results: \[\] is not of type"):
        results.validate([])


def _described(schema: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    while "$ref" in schema:  # what stands beside a reference goes before what it refers to
        schema = {**results.SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], **_without_reference(schema)}
    yield path, schema.get("description")
    for name, child in schema.get("properties", {}).items():
        yield from _described(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from _described(schema[keyword], f"{path}.{keyword}")


def _without_reference(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "$ref"}


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        schema = list(schema.values())
    for child in schema if isinstance(schema, list) else ():
        yield from _objects(child)


def test_the_schema_describes_every_key_and_takes_no_other() -> None:
    # Catches: a key without a description, a required key that is misspelt, an object open to any key.
    jsonschema.Draft202012Validator.check_schema(results.SCHEMA)
    described = list(_described(results.SCHEMA, "results"))
    assert len(described) > 50
    assert [path for path, description in described if not description] == []
    for found in _objects(results.SCHEMA):
        assert set(found["required"]) <= set(found["properties"])
        assert found["additionalProperties"] is False


def test_json_safe_turns_arrays_into_lists_and_nan_into_null() -> None:
    value = {
        "a": np.float32(0.5),
        "b": jnp.array([1.0, jnp.nan]),
        "c": (np.int64(3), -math.inf),
        "d": np.bool_(True),
        "e": None,
    }
    safe = results.json_safe(value)
    assert safe == {"a": 0.5, "b": [1.0, None], "c": [3, None], "d": True, "e": None}
    assert type(safe["c"][0]) is int
    assert type(safe["d"]) is bool


@pytest.mark.parametrize("value", [{"a": object()}, [{1, 2}]])
def test_json_safe_refuses_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(AttributeError):
        results.json_safe(value)


def test_write_then_read_gives_back_the_results_with_null_for_nan(
    valid: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    valid["methods"]["poe"]["recall"] = np.float32("nan")
    path = tmp_path / "new" / "results.json"
    results.write(path, valid)
    assert "NaN" not in path.read_text()
    back = results.read(path)
    assert back["methods"]["poe"].pop("recall") is None
    del valid["methods"]["poe"]["recall"]
    assert back == valid
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    # The file itself follows its schema, too.
    results.validate(json.loads(path.read_text()))


def test_write_leaves_the_old_file_when_the_new_results_are_wrong(
    valid: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    del valid["seed"]
    with pytest.raises(ValueError, match="results: 'seed' is a required property"):
        results.write(path, valid)
    assert path.read_text() == "old"


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[1]", b'{"schema_version": 1}', b"[" * 10**5])
def test_read_tells_the_person_which_file_is_wrong(content: bytes | None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"results\.json .*: add evaluate to --stages, which measures anew\.$"):
        results.read(path)


def test_a_figure_that_was_edited_is_not_believed(valid: dict[str, Any], tmp_path: pathlib.Path) -> None:
    # Catches: no checksum, one that does not cover the figures.
    path = tmp_path / "results.json"
    results.write(path, valid)
    path.write_text(path.read_text().replace('"joint_accuracy": 0.5', '"joint_accuracy": 0.9'))
    results.validate(json.loads(path.read_text()))
    with pytest.raises(errors.UserError, match="not as this version wrote it"):
        results.read(path)


def test_results_of_another_version_are_told_apart(valid: dict[str, Any], tmp_path: pathlib.Path) -> None:
    storage.write_json(tmp_path / "results.json", valid | {"schema_version": 9})
    with pytest.raises(errors.UserError, match=r"of this version \(results\.schema_version: must be \d+, is 9\): add"):
        results.read(tmp_path / "results.json")
