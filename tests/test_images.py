"""Reading pictures of every kind, and refusing each bad file with its own message. Every file is made here."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.images import ImageError, find_images, read_image

ORIENTATION = 0x0112


def pixels(height=24, width=40) -> np.ndarray:
    """Smooth colour, so that lossy formats stay close, and no symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * y, 255 * x, 200 * y * (1 - x)], axis=-1).astype(np.uint8)


def saved(tmp_path, name: str, image: Image.Image, **options) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, colour_type: int, *, width=None, height=None) -> bytes:
    """A 16-bit PNG by hand: Pillow writes no 16-bit colour. `width` and `height` may lie."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width or samples.shape[1], height or samples.shape[0], 16, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("photo", ["cat.bmp", "hot_dog.jpg", "grace_hopper.bmp"])
def test_photos_are_what_pillow_reads(testdata, photo):
    path = testdata / "images" / photo
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    result = read_image(path)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp", "a.gif", "a.jpg", "a.JPEG"])
def test_formats(tmp_path, name):
    lossless = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, name, Image.fromarray(pixels()), **lossless)
    result = read_image(path)
    assert result.shape == (24, 40, 3)
    with Image.open(path) as image:
        np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))
    np.testing.assert_allclose(result.astype(int), pixels(), atol=0 if lossless or name[-3:] in ("png", "bmp") else 40)


def test_paths_bytes_and_pil_images_are_the_same(tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()))
    for source in (path, str(path), path.read_bytes(), Image.open(path), Image.fromarray(pixels())):
        np.testing.assert_array_equal(read_image(source), pixels())


def test_a_path_from_the_home_folder(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_images("~/a.png") == find_images("~") == [path]
    np.testing.assert_array_equal(read_image("~/a.png"), pixels())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, name, orientation):
    """The stored pixels are the upright ones turned the other way; reading gives the upright ones."""
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation](pixels())))
    options = {"lossless": True} if name.endswith("webp") else {"quality": 95} if name.endswith("jpg") else {}
    path = saved(tmp_path, name, stored, exif=exif, **options)
    result = read_image(path)
    assert result.shape == (24, 40, 3)
    np.testing.assert_allclose(result.astype(int), pixels(), atol=30 if name.endswith("jpg") else 0)


def test_a_damaged_exif_block_does_not_matter(tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()), exif=b"Exif\0\0II*\0\xff\xff\xff\x7fnothing")
    np.testing.assert_array_equal(read_image(path), pixels())
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    path = saved(tmp_path, "b.png", Image.fromarray(pixels()), exif=exif)
    np.testing.assert_array_equal(read_image(path), pixels())


def test_exif_that_pillow_chokes_on_does_not_matter(monkeypatch, tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()))

    def choke(self):
        raise struct.error("unpack requires a buffer of 12 bytes")

    monkeypatch.setattr(Image.Image, "getexif", choke)
    np.testing.assert_array_equal(read_image(path), pixels())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp"])
def test_greyscale_has_three_equal_channels(tmp_path, name):
    grey = pixels()[..., 1]
    result = read_image(saved(tmp_path, name, Image.fromarray(grey)))
    assert result.shape == (24, 40, 3)
    assert (result == result[..., :1]).all()
    np.testing.assert_allclose(result[..., 0].astype(int), grey, atol=8)


def test_black_and_white(tmp_path):
    bits = pixels()[..., 1] > 100
    result = read_image(saved(tmp_path, "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(result, np.where(bits, 255, 0)[..., None].repeat(3, 2))


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk(tmp_path, name):
    image = Image.fromarray(pixels())
    result = read_image(saved(tmp_path, name, image.convert("CMYK"), **({"quality": 95} if name == "a.jpg" else {})))
    np.testing.assert_allclose(result.astype(int), pixels(), atol=40)
    assert np.abs(result.astype(int) - pixels()).mean() < 8


def test_palette(tmp_path):
    image = Image.fromarray(pixels()).quantize(64)
    result = read_image(saved(tmp_path, "a.png", image))
    np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tiff"])
def test_alpha_is_laid_on_white(tmp_path, mode, name):
    colour = np.asarray(Image.fromarray(pixels()).convert(mode)).copy()
    colour[..., -1] = 255
    colour[:8, :, -1] = 0
    colour[8:16, :, -1] = 128
    lossless = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    result = read_image(saved(tmp_path, name, Image.fromarray(colour), **lossless)).astype(int)
    opaque = np.asarray(Image.fromarray(colour).convert("RGB")).astype(int)
    assert (result[:8] == 255).all()
    np.testing.assert_allclose(result[8:16], (opaque[8:16] * 128 + 255 * 127) / 255, atol=1)
    np.testing.assert_array_equal(result[16:], opaque[16:])


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.fromarray(pixels()).quantize(16)
    hidden = np.asarray(image) == 3
    assert hidden.any()
    for name in ("a.png", "a.gif"):
        result = read_image(saved(tmp_path, name, image, transparency=3))
        assert (result[hidden] == 255).all()
        np.testing.assert_array_equal(result[~hidden], np.asarray(image.convert("RGB"))[~hidden])


def test_a_transparent_colour_of_rgb_is_white(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[0] = (10, 20, 30)
    result = read_image(saved(tmp_path, "a.png", Image.fromarray(colour), transparency=(10, 20, 30)))
    assert (result[0] == 255).all()
    assert (result[1:] == 0).all()


def test_16_bit_greyscale_spans_the_range(tmp_path):
    """Pillow's own conversion clips: everything over 255 would be white."""
    wide = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    files = [saved(tmp_path, name, Image.fromarray(wide)) for name in ("a.png", "a.tiff")]
    files += [tmp_path / "b.png", tmp_path / "c.pgm"]
    files[2].write_bytes(png(wide, 0))
    files[3].write_bytes(b"P5 40 24 65535\n" + wide.astype(">u2").tobytes())
    for path in files:
        result = read_image(path)
        np.testing.assert_array_equal(result, (wide // 256)[..., None].repeat(3, 2))


def test_16_bit_colour_spans_the_range(tmp_path):
    wide = pixels().astype(np.uint16) * 257
    (tmp_path / "a.png").write_bytes(png(wide.reshape(24, -1), 2, width=40))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels())


def test_16_bit_alpha_is_laid_on_white(tmp_path):
    grey = np.zeros((4, 4, 2), np.uint16)
    grey[2:, :, 1] = 65535
    (tmp_path / "a.png").write_bytes(png(grey.reshape(4, -1), 4, width=4))
    result = read_image(tmp_path / "a.png")
    assert (result[:2] == 255).all()
    assert (result[2:] == 0).all()


@pytest.mark.parametrize(
    "values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32)]
)
def test_pixels_of_no_known_range_are_refused(tmp_path, values):
    path = saved(tmp_path, "a.tiff", Image.fromarray(values))
    with pytest.raises(ImageError, match=f"a.tiff holds {values.dtype} pixels .* 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations_give_the_first_frame(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    lossless = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, name, frames[0], save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(np.uint8([255, 0, 0]), (6, 8, 3)))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no image .*gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg is a pipe or a device, not a file"):
        read_image(tmp_path / "pipe.jpg")
    saved(tmp_path, "photo.png", Image.new("RGB", (2, 2)))
    assert [path.name for path in find_images(tmp_path)] == ["photo.png"]


def test_an_unknown_user():
    with pytest.raises(FileNotFoundError, match=r"~nobody\.such/x\.jpg does not exist: there is no user"):
        read_image("~nobody.such/x.jpg")
    with pytest.raises(FileNotFoundError, match="there is no user"):
        find_images("~nobody.such")


def test_open_files_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    path = saved(tmp_path, "photo.png", Image.fromarray(pixels))
    np.testing.assert_array_equal(read_image(io.BytesIO(path.read_bytes())), pixels)
    with path.open("rb") as file:
        np.testing.assert_array_equal(read_image(file), pixels)
    with pytest.raises(ImageError, match="the open file is empty"):
        read_image(io.BytesIO())


def test_8_bit_values_in_32_bits_are_not_black():
    pixels = np.arange(256, dtype=np.int32).reshape(16, 16)
    np.testing.assert_array_equal(read_image(Image.fromarray(pixels))[..., 0], pixels)
    np.testing.assert_array_equal(read_image(Image.fromarray(pixels * 256))[..., 0], pixels)


@pytest.mark.parametrize("name", ["a.avif", "a.mpo", "a.jp2", "a.ppm", "a.tga"])
def test_every_format_that_pillow_reads_is_found_in_a_folder(name, tmp_path):
    saved(tmp_path, name, Image.new("RGB", (16, 16), "red"))
    [path] = find_images(tmp_path)
    assert read_image(path)[8, 8, 0] > 200


def test_a_folder(tmp_path):
    with pytest.raises(ImageError, match="is a folder, not an image: find_images"):
        read_image(tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.gif", "a.webp"])
def test_a_truncated_file(tmp_path, name):
    path = saved(tmp_path, name, Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=rf"{name} is (truncated or damaged|not an image).*: "):
        read_image(path)
    with pytest.raises(ImageError, match=rf"an image of {len(data) // 2} bytes"):
        read_image(path.read_bytes())


def test_a_damaged_file(tmp_path):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png is truncated or damaged"):
        read_image(path)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"a\.jpg is empty: copy it again"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="an image of 0 bytes is empty"):
        read_image(b"")


def test_a_text_file(tmp_path):
    (tmp_path / "a.jpg").write_text("this is no photo")
    with pytest.raises(ImageError, match=r"a\.jpg is not an image Pillow can read: convert it"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", [10_000, 30_000])
@pytest.mark.parametrize("filters", ["ignore", "error"])
def test_a_giant_is_refused_before_it_is_decoded(tmp_path, side, filters):
    """Between one and two times its limit Pillow warns, above that it raises: here both are one error."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(np.zeros((1, 8), np.uint16), 0, width=side, height=side))
    with warnings.catch_warnings():
        warnings.simplefilter(filters, Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=r"bomb\.png is too large to be a photo .*MAX_IMAGE_PIXELS"):
            read_image(path)


def test_the_limit_is_pillows_and_can_be_moved(tmp_path, monkeypatch):
    path = saved(tmp_path, "a.png", Image.fromarray(pixels()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == (24, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40)
    assert read_image(path).shape == (24, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 40 - 1)
    with pytest.raises(ImageError, match="too large"), pytest.warns(Image.DecompressionBombWarning):
        read_image(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/deep/c.webp", "sub/d.Jpeg", ".cache/e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_find_images_in_a_folder(folder):
    expected = [folder / name for name in ("a.PNG", "b.jpg", "sub/d.Jpeg", "sub/deep/c.webp")]
    assert find_images(folder) == expected
    assert find_images([str(folder)]) == expected


def test_find_images_keeps_the_order_given(folder):
    paths = [folder / "sub", folder / "notes.txt", folder / "b.jpg"]
    assert find_images(paths) == [folder / "sub/d.Jpeg", folder / "sub/deep/c.webp", *paths[1:]]
    assert find_images(str(folder / ".hidden.jpg")) == [folder / ".hidden.jpg"]
    assert find_images([]) == []


def test_find_images_looks_into_a_hidden_folder_when_asked(folder):
    assert find_images(folder / ".cache") == [folder / ".cache/e.jpg"]


def test_find_images_names_an_empty_folder(folder):
    with pytest.raises(ImageError, match=r"The folder .*empty holds no images.*\.jpg"):
        find_images([folder / "b.jpg", folder / "empty"])


def test_find_images_names_a_missing_path(folder):
    with pytest.raises(FileNotFoundError, match=r"There is no image or folder .*gone"):
        find_images([folder, folder / "gone"])


def test_find_images_does_not_pass_over_a_closed_folder(folder, monkeypatch):
    real = os.scandir

    def closed(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="deep"):
        find_images(folder)


def test_reading_leaves_the_image_as_it_was():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels()).save(buffer, "png", exif=exif)
    image = Image.open(buffer)
    assert read_image(image).shape == (40, 24, 3)
    assert image.size == (40, 24)
    assert image.getexif()[ORIENTATION] == 6
