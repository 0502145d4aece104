import io
import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

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
def test_what_is_transparent_is_put_on_white_and_said(tmp_path, channels):
    # Catches: colours under transparent pixels shown, black instead of white, an opaque channel that is spoken of.
    pixels = random_pixels(channels=channels)
    pixels[..., -1] = 255
    picture, note = pictures.read_query(save(tmp_path / "opaque.png", pixels), SHAPE)
    colours = pixels[..., :1].repeat(3, -1) if channels == 2 else pixels[..., :3]
    np.testing.assert_allclose(picture, colours / 127.5 - 1.0, atol=1e-6)
    assert "on white" not in str(note)
    pixels[3, 4, -1], pixels[5, 6, -1] = 0, 51
    picture, note = pictures.read_query(save(tmp_path / "query.png", pixels), SHAPE)
    assert "it was put on white where it is transparent" in note
    np.testing.assert_array_equal(picture[3, 4], 1.0)
    np.testing.assert_allclose((picture[5, 6] + 1) * 127.5, 0.2 * colours[5, 6] + 0.8 * 255, atol=1.0)


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1", "I;16"])
def test_a_colour_that_stands_for_transparent_is_white(tmp_path, mode):
    grey = np.full((32, 32), 9, np.uint8)
    image = {
        "P": Image.fromarray(grey).convert("P"),
        "1": Image.new("1", (32, 32)),
        "I;16": Image.fromarray(grey.astype(np.uint16)),
    }.get(mode) or Image.fromarray(grey).convert(mode)
    clear = {"RGB": (9, 9, 9), "1": 0}.get(mode, 9)
    image.save(tmp_path / "query.png", transparency=clear)
    picture, note = pictures.read_query(tmp_path / "query.png", SHAPE)
    assert (picture == 1.0).all() and "on white" in note
    image.save(tmp_path / "opaque.png")
    picture, note = pictures.read_query(tmp_path / "opaque.png", SHAPE)
    assert (picture < 0.0).all() and "on white" not in note


def profile(primaries, gamma):
    """An ICC profile of three primaries (XYZ, adapted to D50) and a power as tone curve."""

    def fixed(*values):
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    tags = [(b"wtpt", white), (b"cprt", b"text" + bytes(8)), (b"desc", b"desc" + struct.pack(">II", 0, 1) + bytes(80))]
    for letter, xyz in zip("rgb", primaries, strict=True):
        tags += [(f"{letter}XYZ".encode(), b"XYZ " + bytes(4) + fixed(*xyz)), (f"{letter}TRC".encode(), curve)]
    place, index, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        content += bytes(-len(content) % 4)
        index += name + struct.pack(">II", place + len(body), len(content))
        body += content
    head = struct.pack(">IIIIII", place + len(body), 0, 0x02400000, 0x6D6E7472, 0x52474220, 0x58595A20)
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + index + body


DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB_IN_D50 = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def in_srgb(xyz):
    """Bytes in sRGB of XYZ adapted to D50, by the definition of sRGB (IEC 61966-2-1)."""
    linear = np.clip(np.linalg.solve(SRGB_IN_D50, xyz), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["png", "webp", "tif", "transparent.png", "palette.png"])
def test_colours_are_those_of_the_profile(tmp_path, kind):
    # Catches: wide-gamut numbers taken for sRGB's, as phones' photographs were.
    icc = profile(DISPLAY_P3, 2.2)
    for rgb in ((230, 40, 40), (60, 120, 200), (128, 128, 128)):
        pixels = np.full((32, 32, 3), rgb, np.uint8)
        path = tmp_path / f"query.{kind}"
        image = Image.fromarray(pixels)
        if kind == "palette.png":
            image = image.quantize(2)
        if kind == "transparent.png":
            image.putalpha(255)
            image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(path, icc_profile=icc, **({"lossless": True} if kind == "webp" else {}))
        expected = in_srgb(np.transpose(DISPLAY_P3) @ (np.array(rgb) / 255.0) ** 2.2)
        picture, _ = pictures.read_query(path, SHAPE)
        assert np.abs((picture[9, 9] + 1) * 127.5 - expected).max() < 2.5
        decoded = decoding.decode(path.read_bytes(), 32)
        np.testing.assert_allclose(decoded / 127.5 - 1.0, picture, atol=1e-6)


def chunk(kind, content):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
NOT_P3 = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def of_srgb(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def primaries(numbers):
    return chunk(b"cHRM", struct.pack(">8I", *(round(number * 1e5) for number in numbers)))


def power(gamma):
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 1e5)))


@pytest.mark.parametrize(
    ("chunks", "is_p3", "light"),
    [
        (chunk(b"cICP", bytes((12, 13, 0, 1))), True, of_srgb),
        (chunk(b"cICP", bytes((1, 13, 0, 1))), False, of_srgb),
        (chunk(b"cICP", bytes((1, 8, 0, 1))), False, lambda values: values),
        (primaries(P3) + power(0.45455), True, lambda values: values**2.2),
        (power(1.0), False, lambda values: values),
        (primaries(NOT_P3) + power(0.45455), False, of_srgb),
        (chunk(b"sRGB", b"\0") + primaries(P3) + power(1.0), False, of_srgb),
        (power(0.0) + primaries((0,) * 8), False, of_srgb),
        (primaries((0.3,) * 8), False, of_srgb),
        (chunk(b"cICP", bytes((9, 16, 0, 1))), False, of_srgb),
    ],
)
def test_colours_by_numbers(tmp_path, chunks, is_p3, light):
    # Catches: wide-gamut or linear values taken for sRGB's; the numbers of sRGB itself changing a byte.
    for rgb in ((230, 40, 40), (60, 120, 200), (128, 128, 128)):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), rgb).save(buffer, "PNG")
        content = buffer.getvalue()[:33] + chunks + buffer.getvalue()[33:]
        (tmp_path / "query.png").write_bytes(content)
        xyz = np.transpose(DISPLAY_P3) if is_p3 else SRGB_IN_D50
        expected = in_srgb(xyz @ light(np.array(rgb) / 255.0))
        picture, note = pictures.read_query(tmp_path / "query.png", SHAPE)
        assert np.abs((picture[9, 9] + 1) * 127.5 - expected).max() < (1.0 if light is not of_srgb or is_p3 else 0.01)
        assert ("numbers 9 and 16 of H.273" in note) == (b"cICP\x09" in chunks)
        np.testing.assert_allclose(decoding.decode(content, 32) / 127.5 - 1.0, picture, atol=1e-6)


def test_the_numbers_of_an_avif(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (230, 40, 40)).save(buffer, "AVIF", quality=100)
    (tmp_path / "query.avif").write_bytes(buffer.getvalue().replace(b"colrnclx\0\x01", b"colrnclx\0\x0c"))
    picture, _ = pictures.read_query(tmp_path / "query.avif", SHAPE)
    expected = in_srgb(np.transpose(DISPLAY_P3) @ of_srgb(np.array((230, 40, 40)) / 255.0))
    assert np.abs((picture[9, 9] + 1) * 127.5 - expected).max() < 5.0  # its own colours are rounded


def test_a_program_that_draws_is_never_run(tmp_path):
    (tmp_path / "query.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n")
    with pytest.raises(errors.UserError, match="is a program that draws, and no picture"):
        pictures.read_query(tmp_path / "query.eps", SHAPE)


def test_a_profile_that_says_nothing_changes_nothing(tmp_path):
    # Catches: a picture refused, or changed, for a profile that is damaged, of other colours, or sRGB itself.
    pixels = random_pixels()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for icc, said in ((srgb, None), (srgb[:300], "left out"), (b"none" * 99, "left out"), (lab, "left out")):
        path = save(tmp_path / "query.png", pixels, icc_profile=icc)
        picture, note = pictures.read_query(path, SHAPE)
        np.testing.assert_allclose(picture, pixels / 127.5 - 1.0, atol=1e-6)
        assert note is None if said is None else f"its colour profile cannot be used and was {said}" in note
    grey = save(tmp_path / "grey.png", pixels[..., 0], icc_profile=srgb)
    picture, note = pictures.read_query(grey, (32, 32, 1))
    np.testing.assert_allclose(picture, pixels[..., :1] / 127.5 - 1.0, atol=1e-6)
    assert note is None


def test_lab_and_cmyk(tmp_path):
    # Catches: a mode that Pillow does not convert, a and b without their sign, inverted ink.
    lab = np.array([150, 20, 256 - 30], np.uint8)  # L of 255, and a and b in two's complement, as TIFF has them
    Image.frombytes("LAB", (32, 32), lab.tobytes() * 1024).save(tmp_path / "lab.tif")
    height = (150 / 2.55 + 16) / 116
    f = np.array([height + 20 / 500, height, height + 30 / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    picture, _ = pictures.read_query(tmp_path / "lab.tif", SHAPE)
    assert np.abs((picture[9, 9] + 1) * 127.5 - in_srgb(xyz)).max() < 2.5
    assert pictures.read_query(tmp_path / "lab.tif", (32, 32, 1))[0].shape == (32, 32, 1)
    for kind in ("jpg", "tif"):
        Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / f"red.{kind}")
        picture, note = pictures.read_query(tmp_path / f"red.{kind}", SHAPE)
        np.testing.assert_allclose(picture[9, 9], [1, -1, -1], atol=0.03)
        assert "CMYK colours without a profile" in note


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, kind):
    # Catches: Pillow's clipping to white, the high byte alone.
    values = np.random.default_rng(0).integers(0, 65536, (32, 32)).astype(np.uint16)
    path = tmp_path / f"query.{kind}"
    if kind == "pgm":
        path.write_bytes(b"P5 32 32 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    picture, _ = pictures.read_query(path, (32, 32, 1))
    assert np.abs((picture[..., 0] + 1) * 127.5 - values / 257).max() < 0.51


def test_thirty_two_bits_would_be_a_guess(tmp_path):
    for kind in (np.float32, np.int32):
        Image.fromarray(np.ones((32, 32), kind)).save(tmp_path / "query.tif")
        with pytest.raises(errors.UserError, match="its channels have 32 bits and an unknown range"):
            pictures.read_query(tmp_path / "query.tif", SHAPE)


def exif_of(order, entries):
    """EXIF data as bytes, of entries (tag, type, count, four bytes)."""
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + head + body + bytes(4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [0x0100, 0x010F, 0x011A, 0x0131, 0x02BC, 0x8769, 0x8825, 0x9201])
def test_a_mistyped_tag_leaves_the_orientation(tmp_path, tag, order):
    # Catches: exif_transpose, which writes all tags anew; a reader that ends at the first wrong one.
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:, :24] = 255
    path = tmp_path / "query.jpg"
    for kind in range(15):
        for count in (0, 1, 3, 2**31):
            for value in (bytes(4), b"\xff" * 4):
                entries = [(0x0112, 3, 1, struct.pack(f"{order}HH", 6, 0)), (tag, kind, count, value)]
                save(path, pixels, exif=exif_of(order, sorted(entries)))
                decoded = decoding.decode(path.read_bytes(), 16)
                assert decoded[2].min() > 240 and decoded[13].max() < 15


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_orientation_of_another_type(tmp_path):
    path, pixels = tmp_path / "query.jpg", random_pixels()
    upright = decoding.decode(save(path, pixels, quality=95).read_bytes(), 32)[::-1, ::-1]
    for kind, value, turned in ((1, b"\3\0\0\0", True), (4, b"\3\0\0\0", True), (2, b"3\0\0\0", False)):
        save(path, pixels, quality=95, exif=exif_of("<", [(0x0112, kind, 1, value)]))
        assert (np.abs(decoding.decode(path.read_bytes(), 32).astype(int) - upright).max() < 3) == turned
    for broken in (b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"none"):
        save(path, pixels, exif=broken)
        assert pictures.read_query(path, SHAPE)[1] is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_an_oblong_picture(tmp_path, orientation):
    # Catches: a turn the wrong way, and a crop or a size of the picture as it lies in the file.
    upright = random_pixels(40, 24)
    lying = {
        **{1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2)},
        **{6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)},
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("png", "tif"):
        path = save(tmp_path / f"query.{kind}", np.ascontiguousarray(lying), exif=exif)
        picture, note = pictures.read_query(path, (20, 12, 3))
        blocks = upright.reshape(20, 2, 12, 2, 3).mean((1, 3))
        assert np.abs((picture + 1) * 127.5 - blocks).max() <= 1.0
        assert note.endswith("it was resized from 24x40 to 12x20 pixels.")
        assert "its middle of 24x24 pixels was taken" in pictures.read_query(path, (24, 24, 3))[1]


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
        (7, 7, "too small"),
        (7, 32, "too small"),
    ],
)
def test_sizes_that_cannot_be_right_are_refused(tmp_path, height, width, message):
    path = save(tmp_path / "query.png", np.zeros((height, width, 3), np.uint8))
    with pytest.raises(errors.UserError, match=message):
        pictures.read_query(path, SHAPE)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (2049, 2049)])
def test_sizes_at_the_limits_are_accepted(tmp_path, height, width):
    path = save(tmp_path / "query.png", np.zeros((height, width, 3), np.uint8))
    picture, warning = pictures.read_query(path, SHAPE)
    assert picture.shape == SHAPE and f"resized from {width}x{height}" in warning


@pytest.mark.parametrize(("height", "width"), [(32, 40), (40, 32), (109, 89), (218, 178), (75, 100), (32, 320)])
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
    np.testing.assert_allclose(picture, trained, atol=1e-6)
    # The ends of what was taken are half a pixel away from the middles of the outer pixels.
    left, right = across[0, [(width - side) // 2, (width + side) // 2 - 1], 0] / 127.5 - 1.0
    edge = (right - left) / 64
    np.testing.assert_allclose(picture[:, [0, -1], 0], np.tile([left + edge, right - edge], (32, 1)), atol=0.05)


def test_a_photograph_of_twelve_million_pixels(tmp_path):
    # Catches: refusing it, a filter that looks at a few of its pixels.
    stripes = np.zeros((3024, 4032, 3), np.uint8)
    stripes[:, ::2] = (200, 100, 0)
    for kind in ("jpg", "png"):
        picture, note = pictures.read_query(save(tmp_path / f"query.{kind}", stripes), SHAPE)
        assert np.abs((picture + 1) * 127.5 - [100, 50, 0]).max() < 4
        assert note.count("its middle of 3024x3024 pixels was taken, and it was resized from 3024x3024 to 32x32") == 1


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


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "query.png", random_pixels())
    for limit in (900, 400):  # Pillow warns above its limit and refuses above twice its limit.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(errors.UserError, match="too many pixels"):
            pictures.read_query(path, SHAPE)


def test_a_path_as_people_write_it(tmp_path, monkeypatch):
    # Catches: "." for an empty one, a ~ that no shell expanded, a download, a pipe that is waited for, a long name.
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "query.png", random_pixels())
    assert pictures.read_query("~/query.png", SHAPE)[1] is None
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    cases = (
        ("", "a query is empty: give the path"),
        (" ", "a query is empty: give the path"),
        ("https://a.org/b.png", r"https://a\.org/b\.png is an address: download the picture first"),
        (pathlib.Path("https://a.org/b.png"), r"https:/a\.org/b\.png is an address: download the picture first"),
        ("~/none.png", f"the picture {tmp_path}/none.png does not exist"),
        (tmp_path / "pipe", "does not exist or is no file"),
        (tmp_path / "loop", "does not exist or is no file|cannot be read"),
        ("/" + "x" * 5000, r"x{60} cannot be read \(File name too long\): see to the path"),
    )
    for path, message in cases:
        with pytest.raises(errors.UserError, match=message) as raised:
            pictures.read_query(path, SHAPE)
        assert len(str(raised.value)) < 400


def test_whatever_a_decoder_raises_is_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "query.png", random_pixels())
    for error in (AttributeError("no such"), struct.error("short"), MemoryError(), ZeroDivisionError("by zero")):
        monkeypatch.setattr(pictures, "fit", lambda image, shape, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(errors.UserError, match=r"query\.png cannot be read \(.+\): save it anew as PNG"):
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
