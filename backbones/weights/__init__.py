"""Weights in and out: the backbone/ folder, other people's checkpoints, resizing, first weights."""
