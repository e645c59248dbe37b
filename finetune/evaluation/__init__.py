"""Evaluations while a run trains: when, what is logged, which weights are kept."""
