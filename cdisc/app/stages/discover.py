"""The discovery of every query: its modes, its experts, its teacher; and the hierarchy of all their modes."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cdisc import console, storage
from cdisc.app import checkpoints, devices, workdir
from cdisc.app.run import Run
from cdisc.app.stages.saved import keep, kept, saved_by_query, unfinished
from cdisc.discovery import concepts
from cdisc.discovery import hierarchy as hierarchy_lib
from cdisc.networks import backbone as backbone_lib

NOTHING = "the score of the backbone led to no finite mode, so what needs one is left out"
"""What is said of a query without modes. It is a result as any other: the other queries go on."""


def discover(run: Run, params: Any, active: bool) -> Sequence[concepts.Discovery]:
    """The discovery of every query."""
    options = run.config.discover

    def one(item: tuple[jax.Array, jax.Array], params: Any, axis_name: str | None) -> concepts.Discovery:
        query, key = item
        eps_fn = backbone_lib.null_eps(run.backbone, params)
        return concepts.discover(eps_fn, run.schedule, query, key, options, axis_name)

    mapped = devices.divided(one, num_shared=1)

    def work(indices: Sequence[int]) -> list[concepts.Discovery]:
        queries = [run.queries[i] for i in indices]
        images = devices.stack([query.image for query in queries])
        keys = jnp.stack([run.key("discover", query) for query in queries])
        discoveries = [concepts.or_nothing(discovery) for discovery in devices.unstack(mapped((images, keys), params))]
        for query, discovery in zip(queries, discoveries, strict=True):
            if not discovery.found:
                least = zip(discovery.info.smallest_residual, discovery.info.timesteps, strict=True)
                said = ", ".join(f"{residual:.3f} at t = {t}" for residual, t in least)
                console.warn(
                    f"discover: {query.name}: {NOTHING}; the smallest residuals are {said} (0 at an exact mode, 1 in "
                    "noise alone): set config.discover.weak_residual above some of them, raise max_steps, or train "
                    "the backbone longer."
                )
        return discoveries

    return saved_by_query(run, "discover", active, jax.local_device_count(), work)


def follow(
    run: Run, params: Any, discoveries: Sequence[concepts.Discovery], active: bool
) -> tuple[dict[str, Any], hierarchy_lib.Hierarchy] | None:
    """The hierarchy of all queries' modes, as JSON and with its arrays; None where it was not asked for."""
    options = run.config.discover
    if not options.hierarchy:
        return None
    points, t, basins, of = hierarchy_lib.leaves((discovery.pool for discovery in discoveries), options)
    if not len(t):
        return None

    @jax.jit
    def climb(params: Any, points: jax.Array, t: jax.Array) -> hierarchy_lib.Hierarchy:
        eps_fn = backbone_lib.null_eps(run.backbone, params)
        return hierarchy_lib.follow(eps_fn, run.schedule, points, t, options)

    path = run.path("discover", f"hierarchy_{len(run.queries):04d}")  # queries may be added later
    whose = {"queries": [query.crc for query in run.queries], "run": workdir.identity(run.content, "discover")}
    if not checkpoints.exists(path):
        if not active:
            raise unfinished("discover", path)
        keep(path, climb(params, points, t), whose)
    hierarchy = kept(path, whose)
    tree = hierarchy_lib.tree(hierarchy, basins, [run.queries[i].name for i in of])
    file, text = run.path("discover", "hierarchy.json"), json.dumps(tree, indent=2) + "\n"
    # A run that only restores writes nothing: its workdir may be an archive.
    if not file.exists() or file.read_bytes() != text.encode():
        storage.write_text(file, text)
    return tree, hierarchy
