r"""Writes docs/study.md from the summaries in docs/study, which are those of finished benchmarks.

    python -m cdisc.main --config=configs/colormnist.py:small --workdir=runs/study \
        --stages=benchmark --config.evaluate.samples=16
    cp runs/study/benchmark/summary.json docs/study/colormnist.json
    python -m benchmarks.study

tests/test_study.py compares the page, and tables of the README and of docs/ that say so, with these files.
"""

import json
import pathlib

from cdisc.evaluation import study

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "study"
_HEAD = """# The study

Every held-out class under several seeds, by `--stages=benchmark`. The figures are those of the files in `docs/study`;
`python -m benchmarks.study` writes this page from them, and says how they are made. Intervals are of the bootstrap over
classes: a difference whose interval contains 0 is not shown by these runs.
"""


def page() -> str:
    """The page."""
    parts = [_HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        parts.append(f"## {path.stem}\n\n{study.about(summary)}\n\n{study.markdown(summary)}")
    return "\n".join(parts)


if __name__ == "__main__":
    FOLDER.with_suffix(".md").write_text(page(), encoding="utf-8")
