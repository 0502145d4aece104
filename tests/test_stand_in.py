import signal

import numpy as np
import pytest
from PIL import Image

from cdisc import signals
from cdisc.data import stand_in


def test_attributes_are_as_frequent_as_celebas():
    # Catches: shares of men and all confused, hair colours that are drawn apart from one another.
    count = 200_000
    found = stand_in.draw_attributes(count, 0)
    shares = {"Male": stand_in.MALE} | {name: everyone for name, (everyone, _) in stand_in.SHARES.items()}
    assert found.keys() == shares.keys() and set(shares) < set(stand_in.NAMES)
    for name, share in shares.items():
        assert abs(found[name].mean() - share) < 5 * np.sqrt(share * (1 - share) / count), name
    for name, (_, men) in stand_in.SHARES.items():
        assert abs(found[name][found["Male"]].mean() - men) < 5 * np.sqrt(men * (1 - men) / (0.4 * count)), name
    hair = [found[name] for name in ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Bald")]
    assert sum(hair).max() == 1


def test_a_face_shows_its_attributes():
    plain = dict.fromkeys(("Male", *stand_in.SHARES), False) | {"No_Beard": True, "Black_Hair": True, "Male": True}

    def face(**changes):
        return stand_in.draw_face(plain | changes, np.random.default_rng(3)).astype(int)

    assert face().shape == (218, 178, 3)
    np.testing.assert_array_equal(face(), face())
    for name in ("Black_Hair", "Bald", "Wavy_Hair", "Eyeglasses", "No_Beard", "Smiling", "Male"):
        assert (np.abs(face(**{name: not plain[name]}) - face()).max(-1) > 24).sum() > 150, name
    np.testing.assert_array_equal(face(Big_Nose=True), face())


def test_the_folder_is_laid_out_as_celebas(tmp_path):
    stand_in.write(tmp_path, 6, seed=1)
    lines = (tmp_path / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[0] == "6" and lines[1].split() == list(stand_in.NAMES) and len(stand_in.NAMES) == 40
    found = stand_in.draw_attributes(6, 1)
    for i, line in enumerate(lines[2:]):
        file, *signs = line.split()
        assert file == f"{i + 1:06d}.jpg"
        on = {name for name, sign in zip(stand_in.NAMES, signs, strict=True) if sign == "1"}
        assert on == {name for name, values in found.items() if values[i]} and set(signs) <= {"1", "-1"}
        with Image.open(tmp_path / "img_align_celeba" / file) as image:
            assert (image.size, image.format) == ((178, 218), "JPEG")
    parts = (tmp_path / "list_eval_partition.txt").read_text().splitlines()
    assert parts == [f"{i + 1:06d}.jpg {part}" for i, part in enumerate((0, 0, 0, 0, 0, 1))]


def test_a_signal_stops_it_between_two_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_asked", None)

    def draw(attributes, rng):
        signals.ask(signal.SIGTERM)
        return np.zeros((218, 178, 3), np.uint8)

    monkeypatch.setattr(stand_in, "draw_face", draw)
    with pytest.raises(signals.Stopped):
        stand_in.write(tmp_path, 3, seed=0)
    assert [path.name for path in (tmp_path / "img_align_celeba").iterdir()] == ["000001.jpg"]


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    stand_in.write(tmp_path, 3, seed=0)
    kept = tmp_path / "img_align_celeba" / "000001.jpg"
    before = kept.stat().st_mtime_ns
    (tmp_path / "img_align_celeba" / "000002.jpg").unlink()
    stand_in.write(tmp_path, 3, seed=0)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "img_align_celeba" / "000002.jpg").is_file()
