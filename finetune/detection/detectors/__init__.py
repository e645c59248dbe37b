"""The detectors that a recipe may name, and the parts they share."""
