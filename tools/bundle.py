"""Makes the files in `cdisc/bundled`: a backbone that a run has trained, and the judge that goes with it.

The bundled ColorMNIST files come from these two commands, the first of which takes about an hour on two CPU cores:

    python -m cdisc.main --config=configs/colormnist.py:small --config.pretrain.from_scratch=True \
        --stages=pretrain --workdir=runs/backbone
    python -m tools.bundle --config=configs/colormnist.py:small --config.pretrain.from_scratch=True \
        --workdir=runs/backbone

Those of the avatars and the letters come from the same with configs/avatars.py:small and configs/letters.py:small.

Weights are kept in half precision. Each file carries the digests of the configuration and the data that made it; a run
with others refuses it. A backbone's file also says what network and forward process it is, for
`cdisc.networks.bundled.load`.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

from cdisc import console, runtime
from cdisc.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration that the backbone was trained with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run that trained it.")


def main(_: list[str]) -> int:
    """Writes the bundled files; returns the exit code."""
    if _CONFIG.value is None or _WORKDIR.value is None:
        console.fail("give --config=FILE and --workdir=DIR.")
        return 2
    from cdisc.app.config import read
    from cdisc.app.run import opened
    from cdisc.app.stages import pretrain
    from cdisc.app.stages.judge import judge_about, judge_bundle, train_judge
    from cdisc.networks import bundled

    try:
        with opened(read(_CONFIG.value), pathlib.Path(_WORKDIR.value), []) as run:
            if run.network is None or not (run.config.pretrain.bundle and run.config.evaluate.judge.bundle):
                raise UserError("config.pretrain.bundle and config.evaluate.judge.bundle name the files: give both.")
            backbone = bundled.FOLDER / f"{run.config.pretrain.bundle}.npz"
            about = pretrain.bundle_about(run) | bundled.about(run.network, run.scheduler)
            bundled.save_npz(backbone, pretrain.pretrain(run, active=False), about)
            bundled.save_npz(judge_bundle(run), train_judge(run), judge_about(run))
    except UserError as error:
        console.fail(str(error))
        return 2
    console.say(f"bundle: {backbone}, {judge_bundle(run)}")
    return 0


if __name__ == "__main__":
    runtime.configure()  # before the configuration, which uses JAX
    app.run(main)
