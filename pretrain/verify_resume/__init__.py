"""Proves on the user's machine that a run which is killed and started again ends as one that is left alone."""
