"""Contact sheets."""

import pytest

from data.commands.show import contact_sheet


def test_a_sheet_has_as_many_images_as_there_are(write):
    sheet = contact_sheet(write(), count=100, columns=6, tile_px=32)
    assert sheet.size == (6 * 38 + 6, 4 * 56 + 6)
    assert contact_sheet(write(name="few"), count=3, tile_px=32).size == (3 * 38 + 6, 56 + 6)


def test_a_broken_image_is_a_red_tile(write):
    sheet = contact_sheet(write(1, broken={0}), count=1, tile_px=32)
    assert sheet.getpixel((20, 20)) == (200, 60, 60)


def test_no_images_are_refused(write):
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet(write(), count=0)
