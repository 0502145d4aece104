import json
import os
import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "accelerator.sh"


def measure(out: pathlib.Path, *options: str) -> tuple[int, dict]:
    ended = subprocess.run(
        [SCRIPT, f"--out={out}", "--toy", *options],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, json.loads((out / "accelerator.json").read_text())


def test_it_says_what_device_there_is(tmp_path):
    code, found = measure(tmp_path, "--only=card")
    assert code == 0
    assert found["card"]["status"] == "done"
    assert found["card"]["platform"] == "cpu"
    assert found["card"]["TFLOP/s, float32"] > 0


def test_a_part_that_fails_does_not_lose_the_others(tmp_path, monkeypatch):
    # Catches: the loop left at a part's failure; a code that says that all is well.
    monkeypatch.setenv("JAX_PLATFORMS", "nowhere")
    code, found = measure(tmp_path, "--only=card", "--only=mapping")
    assert code == 1
    assert found["card"]["status"] == found["mapping"]["status"] == "failed with exit code 1"
    assert "nowhere" in (tmp_path / "accelerator.log").read_text()


def test_a_part_that_takes_too_long_does_not_lose_the_others(tmp_path):
    # Catches: TimeoutExpired raised through the loop.
    code, found = measure(tmp_path, "--only=card", "--only=mapping", "--seconds=0")
    assert code == 1
    assert found["card"]["status"] == found["mapping"]["status"] == "stopped after 0 s"
