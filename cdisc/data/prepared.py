"""Data sets that TensorFlow Datasets has prepared as array_record: read without TensorFlow, and never downloaded."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from cdisc.errors import UserError

INFO = "dataset_info.json"


@contextlib.contextmanager
def opened(root: pathlib.Path, what: str, splits: str) -> Iterator[Any]:
    """Opens a prepared folder.

    Args:
      root: the folder of one version, with its dataset_info.json.
      what: what is read from it, for messages.
      splits: the splits that it must have, for messages.

    Yields:
      The tfds builder. What is raised while it is in use is taken for the folder's fault.

    Raises:
      UserError: if tfds is missing, or the folder is missing, damaged or another data set's.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"{root} needs a package that is missing ({error}): pip install 'cdisc[tfds]'.") from error
    # Asked before tfds is: it would look for a missing folder on the network.
    if not (root / INFO).is_file():
        raise UserError(
            f"{root} has no {INFO}, so it is no prepared data set: set config.data.root to the version folder."
        )
    try:
        yield tfds.builder_from_directory(str(root))
    except UserError:
        raise
    # What tfds raises for damaged or foreign folders differs from version to version.
    except Exception as error:
        raise UserError(
            f"{root} cannot be read as {what} ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            f"prepare it with tfds as array_record, with the splits {splits}."
        ) from error
