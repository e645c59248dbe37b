"""Moves a pretrained backbone to a labelled task."""
