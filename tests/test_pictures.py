import io

import numpy as np
import pytest
from PIL import Image

from cdisc import errors
from cdisc.data import decoding, pictures

SHAPE = (32, 32, 3)


def random_pixels(height=32, width=32, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def save(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options)
    return path


def test_a_fitting_picture_is_read_exactly(tmp_path):
    pixels = random_pixels()
    picture, warning = pictures.read_query(save(tmp_path / "query.png", pixels), SHAPE)
    assert picture.dtype == np.float32 and warning is None
    np.testing.assert_allclose(picture, pixels.astype(np.float64) * 2.0 / 255.0 - 1.0, atol=1e-6)
    assert picture.min() >= -1.0 and picture.max() <= 1.0


def test_height_comes_before_width(tmp_path):
    pixels = random_pixels(height=40, width=36)
    picture, warning = pictures.read_query(str(save(tmp_path / "query.png", pixels)), (40, 36, 3))
    assert picture.shape == (40, 36, 3) and warning is None
    np.testing.assert_allclose(picture, pixels / 127.5 - 1.0, atol=1e-6)


def test_an_enlarged_pixel_picture_shrinks_to_itself(tmp_path):
    pixels = random_pixels()
    path = save(tmp_path / "query.png", pixels.repeat(5, 0).repeat(5, 1))
    picture, warning = pictures.read_query(path, SHAPE)
    np.testing.assert_allclose(picture, pixels / 127.5 - 1.0, atol=1e-6)
    assert "resized from 160x160 to 32x32" in warning


def test_a_small_picture_is_enlarged_smoothly(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8)[:, None], (1, 16))
    picture, warning = pictures.read_query(save(tmp_path / "query.png", np.stack([ramp] * 3, -1)), SHAPE)
    assert "resized from 16x16 to 32x32" in warning
    # Nearest-neighbour steps would repeat rows.
    assert np.abs(np.diff(picture[:, 5, 0]))[2:-2].min() > 0.02


def test_grey_becomes_colour_with_a_word(tmp_path):
    pixels = random_pixels(channels=1)[..., 0]
    picture, warning = pictures.read_query(save(tmp_path / "query.png", pixels), SHAPE)
    np.testing.assert_allclose(picture, np.stack([pixels] * 3, -1) / 127.5 - 1.0, atol=1e-6)
    assert "grey" in warning


def test_colour_becomes_grey_where_the_network_is(tmp_path):
    pixels = random_pixels()
    picture, warning = pictures.read_query(save(tmp_path / "query.png", pixels), (32, 32, 1))
    luma = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(picture[..., 0], luma / 127.5 - 1.0, atol=1.01 / 127.5)
    assert "grey" in warning
    grey, warning = pictures.read_query(save(tmp_path / "grey.png", pixels[..., 0]), (32, 32, 1))
    assert grey.shape == (32, 32, 1) and warning is None


@pytest.mark.parametrize("channels", [2, 4])
def test_only_an_opaque_alpha_channel_is_dropped(tmp_path, channels):
    pixels = random_pixels(channels=channels)
    pixels[..., -1] = 255
    picture, _ = pictures.read_query(save(tmp_path / "opaque.png", pixels), SHAPE)
    colours = pixels[..., :1].repeat(3, -1) if channels == 2 else pixels[..., :3]
    np.testing.assert_allclose(picture, colours / 127.5 - 1.0, atol=1e-6)
    pixels[3, 4, -1] = 254
    with pytest.raises(errors.UserError, match="transparent pixels"):
        pictures.read_query(save(tmp_path / "query.png", pixels), SHAPE)


def test_a_palette_with_a_transparent_entry_is_refused(tmp_path):
    Image.fromarray(random_pixels()).quantize(8).save(tmp_path / "query.png", transparency=0)
    with pytest.raises(errors.UserError, match="transparent pixels"):
        pictures.read_query(tmp_path / "query.png", SHAPE)
    Image.fromarray(random_pixels()).quantize(8).save(tmp_path / "opaque.png")
    picture, warning = pictures.read_query(tmp_path / "opaque.png", SHAPE)
    assert picture.shape == SHAPE and warning is None


def test_the_camera_s_orientation_is_followed(tmp_path):
    pixels = random_pixels()
    exif = Image.Exif()
    exif[0x0112] = 3  # The camera was upside down.
    picture, _ = pictures.read_query(save(tmp_path / "query.png", pixels, exif=exif), SHAPE)
    np.testing.assert_allclose(picture, pixels[::-1, ::-1] / 127.5 - 1.0, atol=1e-6)


def test_things_that_look_mistaken_are_told(tmp_path):
    _, warning = pictures.read_query(save(tmp_path / "plain.png", np.full(SHAPE, 7, np.uint8)), SHAPE)
    assert "same colour" in warning
    frames = [Image.fromarray(random_pixels()), Image.fromarray(255 - random_pixels())]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    _, warning = pictures.read_query(tmp_path / "moving.gif", SHAPE)
    assert "2 frames, of which the first" in warning


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (32, 41, "41x32 pixels, too elongated"),
        (64, 32, "32x64 pixels, too elongated"),
        (7, 7, "too small"),
        (7, 32, "too small"),
        (2049, 2049, "too large"),
    ],
)
def test_sizes_that_cannot_be_right_are_refused(tmp_path, height, width, message):
    path = save(tmp_path / "query.png", np.zeros((height, width, 3), np.uint8))
    with pytest.raises(errors.UserError, match=message):
        pictures.read_query(path, SHAPE)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (2048, 2048)])
def test_sizes_at_the_limits_are_accepted(tmp_path, height, width):
    path = save(tmp_path / "query.png", np.zeros((height, width, 3), np.uint8))
    picture, warning = pictures.read_query(path, SHAPE)
    assert picture.shape == SHAPE and f"resized from {width}x{height}" in warning


@pytest.mark.parametrize(("height", "width"), [(32, 40), (40, 32), (109, 89), (218, 178)])
def test_the_middle_of_an_oblong_picture_is_taken_as_it_is_of_those_that_are_trained_on(tmp_path, height, width):
    # Catches: faces pressed to a square, of which no trained one is; a crop from the corner.
    across = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    down = np.linspace(0, 255, height).astype(np.uint8)[:, None, None]
    pixels = np.concatenate(np.broadcast_arrays(across, down, np.uint8(90)), axis=-1)
    path = save(tmp_path / "query.png", pixels)
    picture, warning = pictures.read_query(path, SHAPE)
    side = min(height, width)
    assert f"its middle of {side}x{side} pixels was taken" in warning
    trained = decoding.decode(path.read_bytes(), 32).astype(np.float32) / 127.5 - 1.0
    np.testing.assert_allclose(picture, trained, atol=0.06)


def test_a_larger_network_needs_a_larger_picture(tmp_path):
    path = save(tmp_path / "query.png", random_pixels(31, 31))
    with pytest.raises(errors.UserError, match="31x31 pixels, too small for 128x128"):
        pictures.read_query(path, (128, 128, 3))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"query.{suffix}", random_pixels())
    content = path.read_bytes()
    # A GIF may lose a few bytes of its trailer without harm: cut in the middle.
    for length in (0, 4, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(errors.UserError, match=str(path)):
            pictures.read_query(path, SHAPE)


def test_a_png_with_damaged_bytes_is_refused(tmp_path):
    path = save(tmp_path / "query.png", random_pixels())
    content = bytearray(path.read_bytes())
    content[200:220] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match="save it anew"):
        pictures.read_query(path, SHAPE)


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(errors.UserError, match="does not exist"):
        pictures.read_query(tmp_path / "missing.png", SHAPE)
    with pytest.raises(errors.UserError, match="is a folder"):
        pictures.read_query(tmp_path, SHAPE)
    (tmp_path / "notes.png").write_text("not pixels")
    with pytest.raises(errors.UserError, match="no picture in a known format"):
        pictures.read_query(tmp_path / "notes.png", SHAPE)


def test_more_than_eight_bits_are_refused(tmp_path):
    # Pillow would clip them to white.
    path = save(tmp_path / "query.png", random_pixels(channels=1)[..., 0].astype(np.uint16) * 257)
    with pytest.raises(errors.UserError, match="8 bits"):
        pictures.read_query(path, SHAPE)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "query.png", random_pixels())
    for limit in (900, 400):  # Pillow warns above its limit and refuses above twice its limit.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(errors.UserError, match="too many pixels"):
            pictures.read_query(path, SHAPE)


def test_networks_see_one_or_three_channels(tmp_path):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        pictures.read_query(save(tmp_path / "query.png", random_pixels()), (32, 32, 4))


def test_png_holds_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(pixels)))), pixels)


def test_to_uint8_rounds_clips_and_spreads_grey():
    values = np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 6, 1)
    expected = np.array([0, 0, 128, 255, 255, 255])  # 127.5 rounds to even.
    np.testing.assert_array_equal(pictures.to_uint8(values), np.repeat(expected.reshape(1, 6, 1), 3, axis=-1))
    every_byte = np.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(pictures.to_uint8(every_byte / 127.5 - 1.0)[..., 0], every_byte[..., 0])


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (4, 4, 4)])
def test_to_uint8_refuses_what_is_not_a_picture(shape):
    with pytest.raises(ValueError, match="a picture has shape"):
        pictures.to_uint8(np.zeros(shape))


def test_grid_lays_pictures_row_by_row_with_transparent_gaps():
    shades = np.linspace(-1.0, 1.0, 3).reshape(3, 1, 1, 1) * np.ones((3, 2, 3, 3))
    out = pictures.grid(shades, columns=2, gap=1)
    assert out.shape == (5, 7, 4)
    np.testing.assert_array_equal(out[:2, :3], np.broadcast_to([0, 0, 0, 255], (2, 3, 4)))
    np.testing.assert_array_equal(out[:2, 4:], np.broadcast_to([128, 128, 128, 255], (2, 3, 4)))
    np.testing.assert_array_equal(out[3:, :3], np.broadcast_to([255, 255, 255, 255], (2, 3, 4)))
    assert not out[2].any() and not out[:, 3].any() and not out[3:, 4:].any()


def test_grid_is_square_and_its_gap_grows_with_the_picture_unless_told():
    assert pictures.grid(np.zeros((5, 32, 32, 3))).shape == (2 * 32 + 2, 3 * 32 + 2 * 2, 4)
    assert pictures.grid(np.zeros((4, 8, 8, 1)), gap=0).shape == (16, 16, 4)
