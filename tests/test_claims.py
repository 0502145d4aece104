"""The tables of the paper's claims change fields that exist, to values that they can have."""

import pytest
from commands import config_of
from flax.traverse_util import flatten_dict

from cdisc.app.config import as_dict, read
from cdisc.evaluation import claims

CONFIG = config_of("colormnist.py", "small")


@pytest.mark.parametrize(
    ("claim", "row"), [(claim, row) for claim, rows in claims.CLAIMS.items() for row in rows], ids=str
)
def test_each_row_changes_what_it_says(claim, row):
    # Catches: a field that was renamed, a value of another type, a row that is the configuration itself.
    changes = claims.CLAIMS[claim][row]
    changed = CONFIG.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    before, after = (flatten_dict(as_dict(read(content)), sep=".") for content in (CONFIG, changed))
    found = {name for name in before | after if before.get(name) != after.get(name)}
    assert found <= set(changes)
    assert found or row in ("posterior",)  # which stands beside the other readings
