"""The claims of arXiv 2605.07078 as tables of changes to a configuration; `benchmarks/claims.py` measures them.

The changes are those for `configs/colormnist.py:small`; most apply to any configuration with the same levels.
"""

from typing import Any

import numpy as np

STABILITY = "stability"
CLAIMS: dict[str, dict[str, dict[str, Any]]] = {
    STABILITY: {"three seeds": {"evaluate.seeds": (0, 1, 2)}},
    "starts": {
        "from the query": {"discover.start_mode": "query"},
        "from noise": {"discover.start_mode": "random"},
    },
    "timesteps": {
        "5 of 50 to 400": {"discover.timesteps": tuple(np.linspace(50, 400, 5).astype(int).tolist())},
        "10 of 50 to 400": {"discover.timesteps": tuple(np.linspace(50, 400, 10).astype(int).tolist())},
        "20 of 50 to 400": {"discover.timesteps": tuple(np.linspace(50, 400, 20).astype(int).tolist())},
        "low noise alone": {"discover.timesteps": (50, 100, 150)},
        "high noise alone": {"discover.timesteps": (200, 300, 400)},
    },
    "experts": {f"K = {k}": {"discover.num_experts": k} for k in (1, 3, 5, 12)},
    "tau": {f"tau = {tau:g}": {"discover.tau": tau} for tau in (0.05, 0.2, 1.0, 5.0)},
    "covariance": {kind: {"discover.covariance": kind} for kind in ("laplace", "posterior", "deconvolved")},
    "probes": {
        "4, Hutchinson": {"discover.probes": 4, "discover.estimator": "hutchinson"},
        "64, lattice": {"discover.probes": 64},
    },
    "ascent": {
        "Adam, 150 steps": {
            "discover.ascent": "adam",
            "discover.max_steps": 150,
            "discover.tolerance": 1e-3,
            "discover.max_residual": 0.1,
        }
    },
    "matroid": {"one of each timestep": {"discover.one_per_t": True}},
    "saddles": {"modes alone": {"discover.max_curvature": 0.0}},
    "guidance": {"elementwise": {"guidance.elementwise": True}, "w0 = 0.6": {"guidance.w0": 0.6}},
    "embedding start": {"noise": {"adapt.levels.embedding.start": "normal", "adapt.levels.embedding.candidates": 1}},
    "pool": {kind: {"adapt.levels.lora.pool": kind} for kind in ("query", "teacher")},
    "rank": {f"rank {r}": {"adapt.levels.lora.rank": r, "adapt.levels.lora.alpha": 2.0 * r} for r in (1, 8, 16)},
    "steps": {f"{n} steps": {"adapt.levels.lora.steps": n} for n in (5, 20, 40)},
}
"""For each claim its rows, and of each row the fields that differ from the configuration."""
