"""What the decoder can be asked to predict, by the names that ``mim.target`` takes. Imports no torch.

A target is a function of images ``*s b 3 h w``, normalised as the encoder sees them, and the size of a unit. It gives
the values of every unit in raster order, ``*s b l d``, and may look beyond a unit. A new one is one file and one line
here; a file from outside adds its own line (``examples/extensions/target.py``).
"""

PIXELS = "pixels"
TARGETS = {PIXELS: "pretrain.targets.pixels:unit_pixels"}
"""``module:function`` by name."""
