"""What a run has learnt, for diffusers and PEFT."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cdisc import console, storage
from cdisc.app.run import Run
from cdisc.app.stages.adapt import QueryModel
from cdisc.discovery import concepts
from cdisc.evaluation import options
from cdisc.networks import interop


def export(
    run: Run,
    params: Any,
    discoveries: Sequence[concepts.Discovery],
    models: Sequence[QueryModel],
    folder: pathlib.Path,
) -> None:
    """Writes the backbone to `folder/backbone`, and every adaptation to every query as an adapter of that backbone.

    `interop.save_adapter` writes each to `folder/query_0000/NAME`; `folder/queries.json` says which query that is. Of a
    query without modes, the adaptations that would learn from its product are left out.
    """
    assert run.network is not None  # `pipeline.run` has refused an exact score
    interop.save(folder / "backbone", run.network, params, run.scheduler)
    for i, (model, discovery) in enumerate(zip(models, discoveries, strict=True)):
        for name, adaptation in model.adaptations.items():
            if discovery.found or not options.learns_from_product(run.config.adapt.levels, name):
                to = folder / f"query_{i:04d}" / name
                interop.save_adapter(to, run.network, adaptation.adapter, adaptation.embedding)
    names = {f"query_{i:04d}": {"name": query.name, "source": query.source} for i, query in enumerate(run.queries)}
    storage.write_text(folder / "queries.json", json.dumps(names, indent=2) + "\n")
    console.say(f"export: {folder}, the backbone and {len(models)} queries")
