"""Letters of 77 font families: character, style, ink and ground, 63 of 216 combinations never trained.

Command:  python -m cdisc.main --config=configs/letters.py:small --workdir=runs/letters

Training, queries and references share no family (`cdisc.data.letters`), so that coverage of a class's references is
coverage of shapes that were never seen. Held out are bold with pink, cyan on deep red, the italic K, and yellow italics
on navy, whose pairs are all trained. All but one differ from a trained combination in one attribute (the italic K in
cyan on deep red, in two).

Variants: the file alone is 64x64 for a GPU, `:small` is 32x32 for two CPU cores and comes with its backbone (1.8 M
parameters) and judge, `:tiny` is a toy, for tests. What is not said here is as in configs/colormnist.py.
"""

import ml_collections

from cdisc.app import config
from cdisc.configs import colormnist
from cdisc.data import letters

VARIANTS = ("large", "small", "tiny")


def get_config(variant: str = "large") -> ml_collections.ConfigDict:
    """The configuration: "large", "small" or "tiny"."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/letters.py has no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    c = colormnist.get_config({"large": "paper"}.get(variant, variant))
    c.data = config.tree(letters.Options())
    c.network.update(sample_size=c.data.get_ref("size"), num_class_embeds=154)
    c.pretrain.update(from_scratch=True, bundle="")
    c.evaluate.judge.bundle = ""
    if variant == "small":
        c.data.size = 32
        c.pretrain.update(from_scratch=False, bundle="letters_small", batch_size=16)
        c.evaluate.judge.bundle = "letters_small_judge"
    if variant == "tiny":
        c.data.size = 32
    return c
