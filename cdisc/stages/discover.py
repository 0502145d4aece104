"""The discovery of every query: its modes, its experts, its teacher."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cdisc import parallel
from cdisc.discovery import concepts
from cdisc.errors import UserError
from cdisc.networks import backbone as backbone_lib
from cdisc.run import Run, discovery_options, saved_by_query


def discover(this: Run, params: Any, active: bool) -> list[concepts.Discovery]:
    """The discovery of every query."""
    options = discovery_options(this.config, this.schedule)

    def one(item: tuple[jax.Array, jax.Array], params: Any) -> concepts.Discovery:
        query, key = item
        return concepts.discover(backbone_lib.null_eps(this.backbone, params), this.schedule, query, key, options)

    mapped = parallel.one_by_one(one, num_shared=1)

    def work(indices: Sequence[int]) -> list[concepts.Discovery]:
        queries = [this.queries[i] for i in indices]
        images = parallel.stack([query.image for query in queries])
        keys = parallel.stack_keys([this.key("discover", query) for query in queries])
        found = parallel.unstack(mapped((images, keys), params))
        for query, discovery in zip(queries, found, strict=True):
            if not np.isfinite(discovery.teacher.mean).all() or not discovery.pool.mask.any():
                raise UserError(
                    f"discover: the score of the backbone led to no finite mode for {query.name!r}: "
                    "raise config.discover.max_residual or max_steps, or train the backbone longer."
                )
        return found

    key = this.key("discover", this.queries[0])
    first = (parallel.stack([this.queries[0].image]), parallel.stack_keys([key]))
    like = jax.eval_shape(lambda *given: jax.tree.map(lambda leaf: leaf[0], mapped(*given)), first, params)
    return saved_by_query(this, "discover", active, like, jax.local_device_count(), work)
