"""PNGs whose rows are missing, whose chunks cost more than their pixels, and whose values use few of their bits."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data.images.decode import BadImage, decode_rgb, read_header
from data.images.png import SIGNATURE, check_rows, read_layout


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *, bits=8, colours=0, interlaced=0, rows, before=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    return SIGNATURE + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colours", "row_bytes"), [(8, 0, 20), (1, 0, 3), (8, 2, 60), (16, 6, 160), (4, 0, 10)]
)
def test_rows_that_are_missing_are_noticed(bits, colours, row_bytes):
    row = b"\0" + b"\x77" * row_bytes
    assert decode_rgb(png(20, 30, bits=bits, colours=colours, rows=row * 30)).shape == (30, 20, 3)
    with pytest.raises(BadImage, match="PNG does not decode: 50% of its rows are there"):
        decode_rgb(png(20, 30, bits=bits, colours=colours, rows=row * 15))


def test_black_rows_are_not_missing_ones():
    assert decode_rgb(png(20, 30, rows=bytes(21 * 30))).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (8, 8), (13, 21)])
def test_interlaced_images_are_counted_pass_by_pass(size):
    width, height = size
    layout = read_layout(png(width, height, interlaced=1, rows=b""))
    steps = ((8, 8, 0, 0), (8, 8, 0, 4), (8, 4, 4, 0), (4, 4, 0, 2), (4, 2, 2, 0), (2, 2, 0, 1), (2, 1, 1, 0))
    grids = [np.zeros((height, width))[top::down, left::across] for down, across, top, left in steps]
    expected = sum(grid.shape[0] * (1 + grid.shape[1]) for grid in grids if grid.size)
    assert layout.size_bytes == expected
    assert decode_rgb(png(width, height, interlaced=1, rows=bytes(expected))).shape == (height, width, 3)
    with pytest.raises(BadImage):
        decode_rgb(png(width, height, interlaced=1, rows=bytes(expected - 1)))


def test_counting_rows_takes_no_more_memory_than_a_piece():
    data = png(1000, 1000, rows=bytes(2**28))
    start = time.process_time()
    check_rows(data, read_layout(data))
    assert time.process_time() - start < 0.5


def test_many_colour_profiles_are_not_unpacked():
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(900_000)))
    data = png(4, 4, rows=(b"\0" + b"\x77" * 4) * 4, before=profile)
    assert decode_rgb(data).shape == (4, 4, 3)
    start = time.process_time()
    with pytest.raises(BadImage, match="several colour profiles"):
        read_header(png(4, 4, rows=b"", before=profile * 2000))
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(("width", "height"), [(1, 60_000_000), (60_000_000, 1), (65_536, 2)])
def test_long_sides_are_refused(width, height):
    with pytest.raises(BadImage, match="a side is longer than 65535"):
        read_header(png(width, height, rows=b""))
    assert read_header(png(65_535, 1, rows=b"")).width == 65_535


def grey(values, *, before=b""):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], bits=16, rows=rows, before=before)


@pytest.mark.parametrize(("highest", "bits"), [(200, 8), (1000, 10), (4095, 12), (4096, 16), (65_535, 16)])
def test_grey_is_scaled_by_the_bits_that_it_uses(highest, bits):
    values = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode_rgb(grey(values))
    np.testing.assert_allclose(pixels[..., 0], values * (255 / (2**bits - 1)), atol=0.51)


def test_the_file_says_how_many_bits_count():
    values = np.linspace(0, 16_000, 64).astype(np.uint16).reshape(8, 8)
    np.testing.assert_allclose(decode_rgb(grey(values))[..., 0], values / 257, atol=0.51)
    said = decode_rgb(grey(values, before=chunk(b"sBIT", b"\x0e")))
    np.testing.assert_allclose(said[..., 0], values * (255 / (2**14 - 1)), atol=0.51)
    wrong = decode_rgb(grey(values, before=chunk(b"sBIT", b"\x0a")))
    np.testing.assert_allclose(wrong[..., 0], values / 257, atol=0.51)


def test_twelve_bits_in_sixteen_bit_colours_are_said_and_not_black():
    pixel = struct.pack(">HHH", 4000, 2000, 100)
    with pytest.raises(BadImage, match="its 16-bit colours use no more than 12 bits"):
        decode_rgb(png(4, 4, bits=16, colours=2, rows=(b"\0" + pixel * 4) * 4))
    bright = struct.pack(">HHH", 40000, 2000, 100)
    assert decode_rgb(png(4, 4, bits=16, colours=2, rows=(b"\0" + bright * 4) * 4))[0, 0].tolist() == [156, 7, 0]


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_that_ends_before_its_last_row_is_bad(progressive):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(content, "JPEG", progressive=progressive)
    data = content.getvalue()
    with pytest.raises(BadImage, match="premature end of data segment"):
        decode_rgb(data[: len(data) * 2 // 3] + b"\xff\xd9")


@pytest.mark.parametrize("size", range(8, 33))
def test_a_png_that_ends_in_its_header_is_bad(size):
    with pytest.raises(BadImage):
        read_header(png(4, 4, rows=b"")[:size])
