"""Every kind of image becomes upright RGB, and what is none or too large is refused before it costs anything."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.images.decode import BadImage, decode_rgb, decode_samples, read_header
from data.shards.shard_set import Sample


def save(image, format, **options):  # noqa: A002
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


@pytest.fixture
def photo(encoded):
    return Image.open(io.BytesIO(encoded(3, format="PNG")))


@pytest.mark.parametrize(
    ("format", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "L"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
    ],
)
def test_formats_and_colour_modes_become_rgb(photo, format, mode):  # noqa: A002
    data = save(photo.convert(mode), format)
    pixels = decode_rgb(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
    assert pixels.shape == (40, 56, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - expected).mean() < 2.5


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode_rgb(save(Image.fromarray(values), "PNG"))
    np.testing.assert_allclose(pixels[..., 0], values / 257, atol=0.51)


def test_a_palette_with_transparent_colours_decodes_without_a_warning(photo):
    image = photo.convert("P")
    assert decode_rgb(save(image, "PNG", transparency=bytes([0, 128] * 20))).shape == (40, 56, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(photo, orientation, format):  # noqa: A002
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(photo, format, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), np.float64)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]
    assert np.abs(decode_rgb(data) - expected).mean() < 2


def test_a_scaled_jpeg_is_never_smaller_than_asked(encoded):
    data = encoded(1, height=400, width=600)
    assert decode_rgb(data, min_size=(100, 100)).shape == (100, 150, 3)
    assert decode_rgb(data, min_size=(101, 100)).shape == (150, 225, 3)
    assert decode_rgb(data, min_size=(200, 100)).shape == (200, 300, 3)
    assert decode_rgb(data, min_size=(201, 100)).shape == (400, 600, 3)


def test_image_bombs_are_refused_from_their_header(encoded):
    jpeg = bytearray(encoded(0))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 20000, 20000)
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    png += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    start = time.process_time()
    for data in (bytes(jpeg), png):
        with pytest.raises(BadImage, match=r"pixels"):
            decode_rgb(data)
    assert time.process_time() - start < 0.2
    with pytest.raises(BadImage, match="40x56 pixels are more than the 2000 allowed"):
        decode_rgb(encoded(0), max_pixels=2000)


@pytest.mark.parametrize("progressive", [True, False])
def test_jpegs_of_very_many_scans_are_refused_before_decoding(progressive):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    assert decode_rgb(data).shape == (64, 64, 3)
    bomb = data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 200 + data[-2:]
    if not progressive:  # a decoder stops after the one scan that holds all components, unless the first lacks some
        scan = data.index(b"\xff\xda")
        bomb = bomb[: scan + 4] + b"\x01" + bomb[scan + 5 :]
    with pytest.raises(BadImage, match=r"JPEG of 2\d\d scans, of which 100 are decoded at most"):
        decode_rgb(bomb)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_bad(encoded, format):  # noqa: A002
    data = encoded(2, format=format)
    with pytest.raises(BadImage):
        decode_rgb(data[: len(data) // 2])


def test_other_formats_are_not_tried(photo):
    for data in (b"", b"hello", b"\xff\xd8\xff", save(photo, "TIFF"), save(photo, "GIF"), b"%PDF-1.4"):
        with pytest.raises(BadImage):
            decode_rgb(data)


def test_harmless_faults_still_decode(encoded):
    data = encoded(2)
    pixels = decode_rgb(data[:-2] + b"\0\0\0" + data[-2:])  # bytes before the end marker: a warning in libjpeg
    np.testing.assert_array_equal(pixels, decode_rgb(data))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=6))
def test_damaged_files_decode_or_are_bad_and_nothing_else(format, place, noise):  # noqa: A002
    content = io.BytesIO()
    Image.effect_noise((24, 24), 40).convert("RGB").save(content, format)
    data = bytearray(content.getvalue())
    place %= len(data)
    data[place : place + len(noise)] = noise
    try:
        assert decode_rgb(bytes(data), max_pixels=10**6).ndim == 3
    except BadImage:
        return


def test_a_replacement_is_the_next_that_decodes_and_draws_for_itself():
    samples = [Sample(id=n, key=str(n), image=b"x" * (n in (0, 2)), label=None) for n in range(6)]

    def decode(sample):
        if not sample.image:
            raise BadImage("empty")
        return sample.id, sample.repeat

    decoded = decode_samples(samples, decode)
    assert decoded.values == [(0, 0), (2, -2), (2, 0), (0, -4), (0, -5), (0, -6)]
    assert [sample.id for sample in decoded.samples] == [0, 2, 2, 0, 0, 0]
    assert decoded.bad == [(n, str(n), "empty") for n in (1, 3, 4, 5)]
