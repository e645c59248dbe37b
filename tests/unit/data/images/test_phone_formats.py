"""HEIC and AVIF become JPEGs, upright, within the limit of pixels; without the decoder it is said what to install."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from data.images.decode import decode_rgb
from data.images.phone_formats import as_jpeg, is_phone_format, read_suffixes


@pytest.fixture
def avif():
    content = io.BytesIO()
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(content, "AVIF", exif=exif, quality=95)
    return content.getvalue()


def test_avif_becomes_an_upright_jpeg(avif):
    assert is_phone_format(avif)
    pixels = decode_rgb(as_jpeg(avif, max_pixels=1000, quality=95))
    assert pixels.shape == (40, 20, 3)
    assert pixels[:18, :, 0].mean() > 180
    assert pixels[22:].mean() < 20


def test_limits_and_broken_files(avif):
    with pytest.raises(ValueError, match="20x40 pixels are more than the 100 allowed"):
        as_jpeg(avif, max_pixels=100, quality=95)
    with pytest.raises(ValueError, match="it does not decode"):
        as_jpeg(avif[:100], max_pixels=1000, quality=95)


def test_heic_without_its_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert read_suffixes() == (".avif",)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    assert is_phone_format(heic)
    with pytest.raises(ValueError, match=r"it is HEIC: `pip install pillow-heif` reads HEIC"):
        as_jpeg(heic, max_pixels=100, quality=95)


def test_heic_is_decoded_where_the_decoder_is_installed():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    content = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 0, 0)).save(content, "HEIF")
    assert ".heic" in read_suffixes()
    assert decode_rgb(as_jpeg(content.getvalue(), max_pixels=2000, quality=95)).shape == (32, 48, 3)


def test_other_images_are_none():
    assert not is_phone_format(b"\xff\xd8\xff\xe0\0\x10JFIF")
    assert not is_phone_format(b"\0\0\0\x18ftypisom")
