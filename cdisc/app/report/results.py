"""The results file: every key documented in `results.schema.json`, checked before writing and after reading.

A figure that could not be computed (no references, no known attributes) is null, never NaN, so that any JSON reader
takes the file.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jsonschema

from cdisc import storage
from cdisc.errors import UserError

SCHEMA: dict[str, Any] = json.loads(pathlib.Path(__file__).with_name("results.schema.json").read_text("utf-8"))
"""The layout of the results file as a JSON Schema (draft 2020-12), with a description of every key."""

SCHEMA_VERSION: int = SCHEMA["properties"]["schema_version"]["const"]
"""Grows when a key is renamed, removed or changes its meaning, but not for a new optional key."""

_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def json_safe(value: Any) -> Any:
    """A copy of `value` that JSON can hold: arrays become lists, tuples lists, and NaN and infinities null."""
    text = json.dumps(value, default=lambda array: array.tolist())
    return json.loads(text, parse_constant=lambda name: None)


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


def write(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes `results`, made JSON-safe and validated, with their checksum; replaces the file whole or not at all."""
    safe = json_safe(results)
    validate(safe)
    storage.write_json(path, safe)


def read(path: pathlib.Path, run_hash: str | None = None) -> dict[str, Any]:
    """The results in a file that `write` made.

    Args:
      path: of the file.
      run_hash: which they must have, unless an older version wrote them; None takes any.

    Raises:
      UserError: when there is no such file, it is not what was written, another run's, or does not follow `SCHEMA`.
    """
    remedy = "add evaluate to --stages, which measures anew"
    try:
        results = storage.read_json(path, remedy)
        validate(results)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: {remedy}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a results file of this version ({error}): {remedy}.") from error
    if run_hash is not None and results.get("run_hash", run_hash) != run_hash:
        raise UserError(f"{path} has the results of another run: {remedy}.")
    return results
