"""How fast samples are read, decoded and cropped."""
