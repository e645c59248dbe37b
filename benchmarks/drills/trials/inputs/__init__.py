"""Inputs that users bring and that a program could take for something else: generated, tried, checked."""
