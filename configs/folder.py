"""Your own labelled pictures: a folder of them and a table that says what each of them shows.

Command:  python -m cdisc.main --config=configs/folder.py:small --workdir=runs/own --config.data.root=FOLDER
            "--config.data.held_out=('shape=square colour=red',)"

FOLDER has pictures of any format and `labels.csv`, whose first line names the columns, as file,shape,colour, and whose
others are each a picture's, as shapes/one.png,square,red; semicolons or tabs do as well. Each combination of values
that is there is a class; those that match one of `data.held_out` are never trained. Quotes keep together what has
spaces: "'colour=dark red'".

Variants: the file alone is 64x64 for a GPU, `:small` is 32x32 for two CPU cores, `:tiny` a toy for tests. All three
train from scratch, with the settings of configs/avatars.py, which suit its faces and were not tried on yours.
`:finetune` is `:small` that starts from the bundled network of avatars: for a first look at a few hundred pictures.
The number of classes is the data's: a dry run counts them where `network.num_class_embeds` says one more than there
are.
"""

import ml_collections

from cdisc.app import config
from cdisc.configs import avatars
from cdisc.data import folder

VARIANTS = ("large", "small", "tiny", "finetune")


def get_config(variant: str = "large") -> ml_collections.ConfigDict:
    """The configuration: "large", "small", "tiny" or "finetune"."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/folder.py has no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    c = avatars.get_config("small" if variant == "finetune" else variant)
    c.data = config.tree(folder.Options())
    c.network.num_class_embeds = None
    c.pretrain.update(from_scratch=True, bundle="")
    c.evaluate.judge.bundle = ""
    c.evaluate.update(num_queries=4, references=48, samples=16)
    if variant in ("small", "finetune"):
        c.data.size = 32
    if variant == "finetune":
        c.data.update(query=2, reference=14)
        c.pretrain.update(
            start="avatars_small",
            result="best",
            steps=600,
            learning_rate=3e-4,
            warmup_steps=50,
            decay_steps=200,
            ema_decay=0.99,
            save_every=100,
            samples_every=200,
        )
        c.evaluate.update(num_queries=2, references=6, samples=8)
        c.evaluate.judge.update(pictures=2000, steps=500)
    if variant == "tiny":
        c.data.update(size=32, query=2, reference=16)
        c.evaluate.update(num_queries=2, references=8, samples=8)
    c.network.sample_size = c.data.get_ref("size")
    return c
