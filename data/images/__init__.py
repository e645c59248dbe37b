"""Encoded images to arrays: decoding, crops, transforms of boxes and masks."""
