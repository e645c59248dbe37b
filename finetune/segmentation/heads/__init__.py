"""Heads turn a backbone's feature maps into a loss over label maps, or into a score for each class and pixel."""
