"""The results file: every key documented in one place, checked before it is written and after it is read.

`SCHEMA` is a JSON Schema (draft 2020-12). A figure that could not be computed (no references, no known attributes) is
null, never NaN, so that any JSON reader takes the file.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jsonschema

from cdisc import errors, storage

SCHEMA_VERSION = 3
"""Grows when a key is renamed, removed or changes its meaning, but not for a new optional key."""


def _record(description: str, properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with exactly these keys, of which the `optional` ones may be absent."""
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _table(description: str, values: dict[str, Any]) -> dict[str, Any]:
    """An object from names that the run decides to values of one kind."""
    return {"type": "object", "description": description, "additionalProperties": values}


def _share(description: str) -> dict[str, Any]:
    return {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": description}


def _figures(what: str) -> dict[str, Any]:
    return {
        "joint_accuracy": _share(f"Share of {what} whose every attribute is the query's."),
        "attribute_accuracy": _table(
            "For each factor, the share with the query's value of it.",
            _share(f"Share of {what} with the query's value of this factor."),
        ),
        "precision": _share(f"Share of {what} inside the manifold of the references (k-NN, Kynkaanniemi et al. 2019)."),
        "recall": _share(f"Share of the references inside the manifold of {what}."),
        "right_recall": _share("The same by the right ones alone; 0 with k of them or fewer."),
        "density": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "In how many references' k-NN balls one lies, over k (Naeem et al. 2020).",
        },
        "coverage": _share(f"Share of the references with one of {what} in their k-NN ball (Naeem et al. 2020)."),
        "kid": {
            "type": ["number", "null"],
            "description": "Unbiased kernel distance to the references (KID); may fall below 0.",
        },
        "vendi": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": f"How many different pictures {what} amount to (Friedman & Dieng 2023), 1 if all are the "
            "same; Gaussian kernel, its width the references' median distance.",
        },
        "distance_to_query": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "Mean over the samples of their RMS difference to the query; pictures are in [-1, 1].",
        },
    }


def _error_of(name: str) -> dict[str, Any]:
    return {
        "type": ["number", "null"],
        "minimum": 0,
        "description": f"Standard error of {name} over the classes, as the mean.",
    }


_OPTIONAL = ("right_recall", "density", "coverage", "kid", "vendi")
"""Figures that files of this version may lack."""

_FIGURES = _figures("one query's samples")
_MEANS = {
    name: {**schema, "description": f"Mean over the classes of the means over their queries. {schema['description']}"}
    for name, schema in _figures("a query's samples").items()
}
_ERRORS = {
    name: _table(f"Standard errors of {name}.", _error_of("this factor's accuracy"))
    if name == "attribute_accuracy"
    else _error_of(name)
    for name in _FIGURES
}
_POOLED = {
    name: schema for name, schema in _figures("a class's samples").items() if name in ("precision", "recall", "kid")
}
_POOLED["f1"] = _share("Harmonic mean of precision and recall.")


def _pooled(pictures: str) -> dict[str, Any]:
    errors_of = _record("Standard errors of the means.", {name: _error_of(name) for name in _POOLED})
    return _record(
        f"With {pictures} as the references: means over the classes, null where no class has more than k of them.",
        {**_POOLED, "standard_error": errors_of},
    )


_SAMPLES = {"type": "integer", "minimum": 0, "description": "How many samples the figures rest on."}

_PROTOTYPE = _record(
    "A selected concept: one mode of the noised density, in the order of selection.",
    {
        "t": {"type": "integer", "minimum": 1, "description": "The timestep of whose density this is a mode."},
        "basin": {"type": "integer", "minimum": 1, "description": "How many ascent chains ended in this mode."},
        "gain": {"type": "number", "description": "What its selection added to the objective (Eq. 8, 9), in nats."},
        "curvature": {
            "type": ["number", "null"],
            "description": "Largest curvature of log p_t there, in units of 1 / (1 - abar_t): below 0 at a mode.",
        },
        "residual": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "RMS over the dimensions of the network's eps there: 0 at an exact mode.",
        },
    },
)

_QUERY = _record(
    "One query and what was made of it.",
    {
        "name": {"type": "string", "description": "What the query is called on the page."},
        "attributes": {
            "type": ["object", "null"],
            "description": "The true composition, factor to value; null for a picture whose composition is not known.",
            "additionalProperties": {"type": "string", "description": "The value of this factor."},
        },
        "source": {"type": "string", "description": "Where the picture came from: a file, or a part of the data set."},
        "prototypes": {"type": "array", "description": "The selected concepts, best first.", "items": _PROTOTYPE},
        "nfe": {
            "type": "integer",
            "minimum": 0,
            "description": "Network evaluations of the discovery; a Jacobian-vector product counts as one.",
        },
        "methods": _table(
            "Method name to that method's figures for this query.",
            _record("Figures of one method on one query.", {**_FIGURES, "samples": _SAMPLES}, optional=_OPTIONAL),
        ),
    },
)

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "cdisc results",
    **_record(
        "Everything that one run measured.",
        {
            "schema_version": {"const": SCHEMA_VERSION, "description": "The version of this layout."},
            "dataset": {"type": "string", "description": "The data set's name."},
            "data_hash": {"type": "string", "description": "Hash of all that decides the data, where they lie aside."},
            "config_hash": {"type": "string", "description": "Hash of the configuration that the run had."},
            "seed": {"type": "integer", "description": "The seed of the run's root key."},
            "versions": _table(
                "The software and the device that the run had.",
                {"type": "string", "description": "The version of this package, or the name of the device."},
            ),
            "seconds": _table(
                "Wall-clock time per stage, in the order in which the stages ran.",
                {"type": "number", "minimum": 0, "description": "Seconds in this stage, compilation included."},
            ),
            "judge": _record(
                "What the judge makes of real pictures that it has not seen: how far to trust the accuracies.",
                {
                    "joint_accuracy": _FIGURES["joint_accuracy"],
                    "attribute_accuracy": _FIGURES["attribute_accuracy"],
                    "balanced_accuracy": _table(
                        "For each factor, the accuracy for each of its values, averaged: rare values count fully.",
                        _share("Balanced accuracy of this factor."),
                    ),
                    "calibration_error": _table(
                        "For each factor, how far the judge's confidence is from how often it is right.",
                        _share("Expected calibration error of this factor, in ten bins of the confidence."),
                    ),
                },
            ),
            "queries": {"type": "array", "description": "One entry for each query, in order.", "items": _QUERY},
            "methods": _table(
                "Method name to its figures over all queries.",
                _record(
                    "Figures of one method.",
                    {
                        **_MEANS,
                        "standard_error": _record(
                            "Standard errors of the means; null where there is only one class. A query of unknown "
                            "composition is a class of its own.",
                            _ERRORS,
                            optional=_OPTIONAL,
                        ),
                        "samples": {**_SAMPLES, "description": "How many samples there were in all."},
                        "queries": {"type": "integer", "minimum": 0, "description": "How many queries were averaged."},
                        "pooled": _record(
                            "The paper's comparison (arXiv 2605.07078, section 4.2), with the judge's features: the "
                            "samples of all queries of a class together. Absent where no class has several queries "
                            "and more than k samples in all.",
                            {
                                "faithfulness": _pooled("the queries themselves"),
                                "generalization": _pooled("other pictures of the class"),
                                "classes": {"type": "integer", "minimum": 1, "description": "How many classes had."},
                            },
                        ),
                    },
                    optional=(*_OPTIONAL, "pooled"),
                ),
            ),
        },
        optional=("judge",),
    ),
}
"""The layout of the results file, with a description of every key."""


_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def json_safe(value: Any) -> Any:
    """A copy of `value` that JSON can hold: arrays become lists, tuples lists, and NaN and infinities null.

    Raises:
      ValueError: for a value with no JSON form, or a key that is not a string.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a key of the results must be a string, not {key!r}")
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    raise ValueError(f"results cannot hold a {type(value).__name__}")


def validate(results: Any) -> None:
    """Checks `results` against `SCHEMA`.

    Raises:
      ValueError: naming the path of the worst offence, as in `results.queries[0].methods.poe.recall`.
    """
    # A file of another version differs elsewhere as well.
    if isinstance(results, dict) and results.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(f"results.schema_version: must be {SCHEMA_VERSION}, is {results['schema_version']!r}")
    error = jsonschema.exceptions.best_match(_VALIDATOR.iter_errors(results))
    if error is not None:
        raise ValueError(f"results{error.json_path[1:]}: {error.message:.200}")


def write(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes `results`, made JSON-safe and validated, as indented JSON; the file is replaced whole or not at all."""
    safe = json_safe(results)
    validate(safe)
    storage.write_text(pathlib.Path(path), json.dumps(safe, indent=2, allow_nan=False) + "\n")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The results in a file that `write` made.

    Raises:
      UserError: when there is no such file, it is not JSON, or it does not follow `SCHEMA`.
    """
    try:
        results = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        validate(results)
    except OSError as error:
        raise errors.UserError(f"{path}: cannot be read ({error.strerror}); run the evaluation first.") from error
    except ValueError as error:
        raise errors.UserError(f"{path} is not a results file of this version ({error}); run again.") from error
    return results
