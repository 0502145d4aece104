import errno
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from cdisc import storage
from cdisc.data import decoding, pictures
from cdisc.errors import UserError


def test_decode_takes_the_middle_square():
    # A white square of 178 pixels in the middle of 218 rows; what is above and below is black.
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198] = 255
    for size in (32, 64, 128):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=95)
        image = decoding.decode(data.getvalue(), size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert image[2:-2].min() > 240
    grey = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(grey, "JPEG")
    assert decoding.decode(grey.getvalue(), 32).shape == (32, 32, 3)


@pytest.mark.parametrize("size", [64, 128])
def test_decode_averages_what_a_pixel_covers(size):
    # Catches: filters that leave out pixels or blur, and decoding at a size that is too small.
    draw = np.random.default_rng(0).integers(0, 256, (28, 23, 3), np.uint8)
    pixels = Image.fromarray(draw).resize((178, 218), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    pixels.save(data, "JPEG", quality=95)
    # The share of source pixel j in pixel i, exactly.
    edges = np.linspace(0, 178, size + 1)
    inside = np.minimum(edges[1:, None], np.arange(1, 179)) - np.maximum(edges[:-1, None], np.arange(178))
    share = np.clip(inside, 0, None) * size / 178
    expected = np.einsum("ij,jkc,lk->ilc", share, np.asarray(pixels, float)[20:198], share, optimize=True)
    assert np.abs(decoding.decode(data.getvalue(), size) - expected).mean() < 3.0


def test_the_next_rows_are_decoded_while_these_are_written(tmp_path, monkeypatch):
    # Catches: rows that are decoded twice, left out or put elsewhere, and a pool that waits for the disk.
    asked, images = [], np.random.default_rng(0).integers(1, 256, (600, 4, 4, 3), np.uint8)
    monkeypatch.setattr(decoding, "decode", lambda data, size: images[data])

    def read(name):
        asked.append(name)
        return int(name)

    monkeypatch.setattr(storage, "to_disk", lambda path: None)
    seen, write = [], storage.write_text
    monkeypatch.setattr(storage, "write_text", lambda *args: (seen.append(len(asked)), write(*args)))
    monkeypatch.setattr(
        decoding.cache.os, "fsync", lambda file: wait_for(lambda: len(asked) >= min(len(seen) * 256, 600))
    )
    found, row_of = decoding.decode_all(tmp_path, {}, 4, [str(i) for i in range(600)], lambda: read)
    np.testing.assert_array_equal(found, images)
    assert sorted(map(int, asked)) == list(range(600)) and row_of["599"] == 599


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def saved(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_decode_turns_pictures_upright():
    # Catches: labels beside pictures that lie on their side, where queries are upright.
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:24] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: what is at the top belongs to the right
    turned = decoding.decode(saved(Image.fromarray(pixels), "JPEG", exif=exif.tobytes()), 16)
    assert turned[:, 10:].min() > 240 and turned[:, :6].max() < 15


def test_decode_shows_what_is_transparent_on_white():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = (200, 0, 0, 255)
    image = decoding.decode(saved(Image.fromarray(pixels), "PNG"), 16)
    assert image[:7].reshape(-1, 3).tolist() == [[200, 0, 0]] * 112
    assert image[9:].min() == 255


def test_a_picture_is_the_same_as_a_query_and_in_a_data_set(tmp_path):
    # Catches: a second path, of other colours, filters, turns or crops.
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = rng.integers(0, 256, (70, 50, 4), np.uint8)
    for mode, kind in (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG")):
        data = saved(Image.fromarray(pixels).convert(mode), kind, exif=exif)
        (tmp_path / "query").write_bytes(data)
        query, _ = pictures.read_query(tmp_path / "query", (32, 32, 3))
        np.testing.assert_allclose(decoding.decode(data, 32) / 127.5 - 1.0, query, atol=1e-6)


def test_a_file_that_unpacks_to_more_than_a_picture_is_not_read_on(monkeypatch):
    # Catches: memory that a small archive fills, and a limit that is one byte off.
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    assert decoding.read_bytes(io.BytesIO(bytes(10_000))) == bytes(10_000)
    endless = io.BytesIO(bytes(10**6))
    with pytest.raises(ValueError, match="more than 10000 bytes"):
        decoding.read_bytes(endless)
    assert endless.tell() < 20_000


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    # Catches: as many large pictures in memory as there are cores; small ones, or JPEGs, that wait for each other.
    inside, most, lock = [0], [0], threading.Lock()

    def fit(image, shape):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return np.zeros((shape[0], shape[1], 3), np.uint8), []

    monkeypatch.setattr(decoding.pictures, "fit", fit)
    monkeypatch.setattr(decoding, "_LARGE", 100)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 4)
    for kind, side, alone in (("PNG", 11, True), ("PNG", 10, False), ("JPEG", 28, False)):
        most[0], data = 0, saved(Image.new("RGB", (side, side)), kind)
        folder = tmp_path / f"{kind}{side}"
        decoding.decode_all(folder, {}, 4, [str(i) for i in range(8)], lambda data=data: lambda name: data)
        assert (most[0] == 1) == alone


def test_whatever_a_decoder_raises_is_one_picture_that_cannot_be_read(tmp_path, monkeypatch, capsys):
    # Catches: a list of errors, which Pillow's never is all of; a reason that nobody hears.
    monkeypatch.setattr(decoding, "_MAX_UNREADABLE", 0.5)
    fit = decoding.pictures.fit

    def strange(image, shape):
        if image.width == 9:
            raise AssertionError("a strange one")
        return fit(image, shape)

    monkeypatch.setattr(decoding.pictures, "fit", strange)
    found = {"good": saved(Image.new("RGB", (8, 8)), "PNG"), "bad": saved(Image.new("RGB", (9, 8)), "PNG")}
    for _ in range(2):
        _, rows = decoding.decode_all(tmp_path, {}, 8, list(found), lambda: found.get)
        assert rows == {"good": 0}
        assert "left out: bad. To try these again" in (said := capsys.readouterr().err.replace("\n", " "))
        assert "The first: a strange one." in said


def test_a_black_picture_is_no_damaged_one_and_a_stop_forgets_none(tmp_path, monkeypatch):
    # Catches: damage told by black pixels, a resumed cache that takes the black in a damaged one's place for a picture.
    monkeypatch.setattr(decoding, "_MAX_UNREADABLE", 0.5)
    black = saved(Image.new("RGB", (8, 8)), "BMP")
    files = [f"{i}.bmp" for i in range(600)]

    def read(name):
        if name == "300.bmp" and not again:
            raise KeyboardInterrupt
        return b"damaged" if name in ("7.bmp", "599.bmp") else black

    again = False
    with pytest.raises(KeyboardInterrupt):
        decoding.decode_all(tmp_path, {}, 8, files, lambda: read)
    again = True
    images, row_of = decoding.decode_all(tmp_path, {}, 8, files, lambda: read)
    assert not images.any()
    assert row_of == {name: row for row, name in enumerate(files) if row not in (7, 599)}


def test_what_the_system_cannot_read_now_is_not_taken_for_damaged(tmp_path):
    # Catches: a network folder's hiccup written down as damage for ever, and files opened that are not needed any more.
    black = saved(Image.new("RGB", (8, 8)), "BMP")

    def lost(name):
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(UserError, match=r"^0\.bmp cannot be read \(Stale file handle\): see to the folder"):
        decoding.decode_all(tmp_path, {}, 8, ["0.bmp"], lambda: lost)
    _, row_of = decoding.decode_all(tmp_path, {}, 8, ["0.bmp"], lambda: lambda name: black)
    assert row_of == {"0.bmp": 0}
    decoding.decode_all(tmp_path, {}, 8, ["0.bmp"], pytest.fail)
