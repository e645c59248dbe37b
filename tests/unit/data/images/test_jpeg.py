"""The upper part of a JPEG is the upper part of the whole image, and hides no fault that decoding would find."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.images.decode import BadImage, decode_part, decode_rgb, read_header
from data.images.jpeg import read_segments


def photo(*, height=150, width=203, mode="RGB", **options):
    """Draw a JPEG full of detail, so that every row differs from its neighbours."""
    noise = np.random.default_rng(height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    content = io.BytesIO()
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    image.save(content, "JPEG", **options)
    return content.getvalue()


KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "optimised": {"optimize": True, "quality": 97},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_upper_rows_equal_those_of_the_whole_image(kind, shrink):
    data = photo(**KINDS[kind])
    header = read_header(data)
    height, width = -(-150 // shrink), -(-203 // shrink)
    whole = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=min(shrink, 2))
    assert whole.shape == (height, width, 3)
    cut = 0
    for bottom in (1, 8, 17, 63, 64, 65, 100, 140, 149, 150):
        upper, found = decode_part(data, header=header, bottom=bottom, shrink=shrink)
        assert found == shrink
        rows = -(-bottom // shrink)
        np.testing.assert_array_equal(upper[:rows], whole[:rows])
        cut += len(upper) < len(whole)
    assert cut >= 6  # it does save something


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 2, 4, 8]),
)
def test_images_of_any_size_have_their_upper_rows(height, width, bottom, subsampling, shrink):
    data = photo(height=height, width=width, subsampling=subsampling)
    bottom = min(bottom, height)
    upper, found = decode_part(data, header=read_header(data), bottom=bottom, shrink=shrink)
    least = {"min_height": -(-height // found), "min_width": -(-width // found), "min_factor": 2} if found > 1 else {}
    rows = -(-bottom // found)
    np.testing.assert_array_equal(upper[:rows], simplejpeg.decode_jpeg(data, **least)[:rows])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_have_their_upright_upper_rows(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = photo(exif=exif.tobytes())
    upper, _ = decode_part(data, header=read_header(data), bottom=40)
    np.testing.assert_array_equal(upper[:40], decode_rgb(data)[:40])
    assert (len(upper) < read_header(data).height) == (orientation <= 2)


def test_a_truncated_image_is_bad_even_where_the_rows_above_are_whole():
    data = photo()
    data = data[: len(data) * 9 // 10]
    with pytest.raises(BadImage, match="truncated"):
        decode_part(data, header=read_header(data), bottom=20)


def test_codes_broken_in_the_upper_rows_decode_as_in_the_whole_image():
    data = bytearray(photo(quality=90))
    start = data.index(b"\xff\xda") + 14
    data[start + 800 : start + 820] = bytes(20)
    data = bytes(data)
    upper, _ = decode_part(data, header=read_header(data), bottom=100)
    np.testing.assert_array_equal(upper[:100], decode_rgb(data)[:100])


def test_bytes_after_the_image_change_nothing():
    data = photo()
    for tail in (b"\0" * 8, b"\0" * 500):
        upper, _ = decode_part(data + tail, header=read_header(data + tail), bottom=40)
        np.testing.assert_array_equal(upper[:40], decode_rgb(data)[:40])


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 2000), st.binary(min_size=1, max_size=6), st.integers(1, 60))
def test_damaged_images_decode_or_are_bad_and_nothing_else(place, noise, bottom):
    data = bytearray(photo(height=60, width=60))
    place = 2 + place % (len(data) - 2)
    data[place : place + len(noise)] = noise
    try:
        header = read_header(bytes(data), max_pixels=10**6)
        assert decode_part(bytes(data), header=header, bottom=min(bottom, header.height))[0].ndim == 3
    except BadImage:
        return


@settings(deadline=None, max_examples=300)
@given(st.integers(2, 700), st.binary(min_size=1, max_size=4))
def test_a_frame_that_is_trusted_is_the_one_that_decoders_see(place, noise):
    data = bytearray(photo(height=60, width=60))
    data[place : place + len(noise)] = noise
    frame = read_segments(bytes(data)).frame
    if frame is not None:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(bytes(data), strict=False)
        except (ValueError, KeyError):
            return
        assert (frame.height, frame.width) == (height, width)


@pytest.mark.parametrize(
    "hidden",
    [
        b"\xff\xec\x00\x0f%s",  # inside another segment
        b"\xff\x01%s",  # after a marker that has no size, and would seem to have one that steps over it
        b"\xff\xd0%s",
        b"\xff\xff%s",
        b"\x00%s",
    ],
)
def test_a_second_frame_header_does_not_mislead(hidden):
    data = photo()
    fake = b"\xff\xc0\x00\x0b\x08" + (40).to_bytes(2, "big") + (40).to_bytes(2, "big") + b"\x01\x01\x11\x00"
    data = data[:2] + hidden % fake + data[2:]
    found = read_segments(data).frame
    assert found is None or (found.height, found.width) == simplejpeg.decode_jpeg_header(data, strict=False)[:2]


def test_broken_frame_headers_are_none():
    data = photo()
    place = read_segments(data).frame.place
    assert read_segments(data[: place + 3]).frame is None
    for change in ({-1: 12}, {0: 0, 1: 0}):
        broken = bytearray(data)
        for offset, value in change.items():
            broken[place + offset] = value
        assert read_segments(bytes(broken)).frame is None


def test_a_jpeg_may_end_anywhere(encoded):
    data = encoded(0)
    scan = data.index(b"\xff\xda")
    for size in range(scan + 12):
        assert read_segments(data[:size]).orientation == 1
