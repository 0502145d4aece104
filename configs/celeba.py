"""CelebA: photographs of faces; a class is a combination of 14 attributes, 51 are trained and 23 held out.

Command:  python -m cdisc.main --config=configs/celeba.py --workdir=runs/celeba --config.data.root=FOLDER

FOLDER holds what people have: `img_align_celeba/` (or `_png`) or its zip, `list_attr_celeba.txt` or a .csv, and
`list_eval_partition.*` if there; or it is a `celeb_a` that TensorFlow Datasets has prepared as array_record
(pip install '.[tfds]'). The pictures, their zip, and the folder around all these may be named too. CelebA is for
non-commercial research and is never downloaded. How the classes are chosen is said in `cdisc.data.manifest`;
`--config.data.manifest=FILE` freezes them.

Variants: the file alone has the paper's settings (arXiv 2605.07078, tables 4 and 5), a network of 113 M parameters at
128x128 for GPUs; it was not trained for this repository. `:avatars` runs the whole code path at small size: CelebA's
place is taken by avatars in CelebA's layout. What is not said here is as in configs/colormnist.py.
"""

import ml_collections

from cdisc.app import config
from cdisc.configs import colormnist
from cdisc.data import celeba

VARIANTS = ("paper", "avatars")


def get_config(variant: str = "paper") -> ml_collections.ConfigDict:
    """The configuration: "paper" or "avatars"."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/celeba.py has no variant {variant!r}: use one of {', '.join(VARIANTS)}")
    base = {"avatars": "tiny"}.get(variant, variant)
    c = colormnist.get_config(base)
    c.data = config.tree(celeba.Options())
    c.pretrain.update(from_scratch=True, bundle="")
    c.network.sample_size = c.data.get_ref("size")
    c.evaluate.judge.bundle = ""
    if variant == "avatars":
        c.data.update(stand_in=600, size=32, attributes=("Black_Hair", "No_Beard", "Smiling", "Male"))
        c.data.sizes.update(seen=6, held_out=3, train=20, validation=5, query=3, judge=200)
        c.network.update(num_class_embeds=7)
        c.evaluate.update(references=10, samples=4)
        return c
    # google/ddpm-celebahq-256 at half its sample size, with a class table.
    c.network.update(
        num_class_embeds=52,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    )
    # 32 pictures at a time, as the paper's four GPUs; on a small machine, fewer: `--config.pretrain.accumulate=16`.
    c.network.remat = True
    c.pretrain.update(steps=500_000, batch_size=128, accumulate=4, save_every=5000, samples_every=25_000)
    c.discover.update(
        timesteps=tuple(range(50, 501, 50)), starts_per_t=8, start_mode="query", learning_rate=0.09, max_steps=100
    )
    # Of a device at once, as few as a micro-batch has on a small one.
    c.discover.lanes = c.sampling.batch = 16
    c.adapt.chunk = 1  # queries whose batches, of 32 at most, a device learns from at once
    c.guidance.w0 = c.adapt.guidance.w0 = 0.5
    # Five epochs over the pool, in batches of two.
    c.adapt.levels.lora.update(rank=16, alpha=32.0, steps=640, batch_size=2)
    c.evaluate.num_queries = 23
    c.evaluate.methods.lora.guidance = 1.2
    return c
