"""Concept discovery in diffusion models: from one picture of an unseen combination to more of it.

    import cdisc

    model = cdisc.load("digits")  # "faces", "letters", a folder of diffusers; cdisc.model(eps): any function
    query = cdisc.example("digits", "digit=3 digit_colour=pink background=dark_purple")  # or a file's path
    found = cdisc.discover(query, model)
    samples = cdisc.sample(found, model, 16)
    learnt = cdisc.adapt(found, model)
    varied = cdisc.sample(learnt, model, 16)
    cdisc.plot.pictures(varied)

Each name below is imported when it is first used (PEP 562), so that `import cdisc` costs nothing and a command loads
only what it needs. The first one also sets what `cdisc.runtime` sets, before JAX is used: what the user has set stays.
"""

import importlib

TYPE_CHECKING = False  # which type checkers take for True: typing itself would take longer than all else here
if TYPE_CHECKING:
    from cdisc.app import plot
    from cdisc.app.containers import restore, save
    from cdisc.app.notebook import Found, Model, adapt, compose, discover, example, load, model, picture, sample
    from cdisc.discovery.algebra import (
        Concepts,
        Library,
        collect,
        conjunction,
        exclude,
        largest_exclusion,
        replace,
        restrict,
        search,
    )

__version__ = "0.1.0"

_NAMES = {
    "cdisc.app.containers": "restore save",
    "cdisc.app.notebook": "Found Model adapt compose discover example load model picture sample",
    "cdisc.app.plot": "plot",
    "cdisc.discovery.algebra": "Concepts Library collect conjunction exclude largest_exclusion replace restrict search",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> object:
    """One of these names, imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'cdisc' has no attribute {name!r}")
    importlib.import_module("cdisc.runtime").configure()
    module = importlib.import_module(_WHERE[name])
    return module if name == "plot" else getattr(module, name)


def __dir__() -> list[str]:
    return ["__version__", *__all__]
