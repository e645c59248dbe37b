"""Activations kept or recomputed, and which blocks to choose."""
