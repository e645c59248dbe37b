"""HEIC and AVIF, as phones and web pages have them: decoded once, when they are packed, and kept as JPEG.

Pillow reads AVIF; HEIC needs pillow-heif (`pip install -e '.[heic]'`). Training reads neither: both cost several times
what a JPEG costs.
"""

import importlib
import importlib.util
import io
import warnings

from PIL import Image, ImageOps

from data.images.decode import BadImage

HEIC_SUFFIXES, AVIF_SUFFIXES = (".heic", ".heif"), (".avif",)
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
HEIC_HINT = "`pip install pillow-heif` reads HEIC"


def is_phone_format(data: bytes) -> bool:
    """Whether encoded bytes are HEIC or AVIF, by their beginning."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS + AVIF_BRANDS


def read_suffixes() -> tuple[str, ...]:
    """List the suffixes of those that can be decoded here."""
    return AVIF_SUFFIXES + (HEIC_SUFFIXES if importlib.util.find_spec("pillow_heif") else ())


def as_jpeg(data: bytes, *, max_pixels: int, quality: int) -> bytes:
    """Decode HEIC or AVIF upright, and encode it as JPEG.

    Raises:
        BadImage: it does not decode, has more pixels than allowed, or what decodes it is not installed.
    """
    is_avif = data[8:12] in AVIF_BRANDS or b"avif" in data[16:64]
    if not is_avif:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise BadImage(f"it is HEIC: {HEIC_HINT}") from None
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit on pixels comes next
        try:
            with Image.open(io.BytesIO(data), formats=["AVIF" if is_avif else "HEIF"]) as image:
                if image.width * image.height > max_pixels:
                    raise BadImage(f"{image.height}x{image.width} pixels are more than the {max_pixels} allowed")
                ImageOps.exif_transpose(image).convert("RGB").save(content, "JPEG", quality=quality, subsampling=0)
        except BadImage:
            raise
        except Exception as error:  # plugins raise what they like on broken files
            raise BadImage(f"it does not decode: {error}") from error
    return content.getvalue()
