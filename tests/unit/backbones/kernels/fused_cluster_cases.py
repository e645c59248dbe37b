"""Sizes that the fused attention in clusters is proved on."""

CASES = {
    "clusters_divide": {"tokens": 48, "clusters": 4, "dim": 32, "heads": 2, "images": 2},
    "clusters_do_not_divide": {"tokens": 50, "clusters": 7, "dim": 16, "heads": 3, "images": 2},
    "one_token_to_a_cluster": {"tokens": 20, "clusters": 20, "dim": 16},
    "one_or_two_tokens_to_a_cluster": {"tokens": 20, "clusters": 17, "dim": 24, "turn": False},
    "more_clusters_than_tokens": {"tokens": 5, "clusters": 8, "dim": 16, "images": 2},
    "one_cluster": {"tokens": 40, "clusters": 1, "dim": 48},
    "several_tiles": {"tokens": 400, "clusters": 2, "dim": 8, "heads": 1},
    "several_tiles_of_which_one_is_empty": {"tokens": 385, "clusters": 3, "dim": 32, "heads": 1, "beside": False},
    "wide_heads_without_turns": {"tokens": 61, "clusters": 2, "dim": 64, "turn": False, "images": 2},
    "mean_of_queries": {"tokens": 30, "clusters": 3, "dim": 24, "mean_of_keys": False},
    "mean_of_many_parts": {"tokens": 700, "clusters": 14, "dim": 8, "heads": 1, "parts_per_read": 2},
    "only_values_have_a_gradient": {"tokens": 12, "clusters": 2, "dim": 16, "only_beside": True},
}
HALF_CASES = {
    "small_tile": {"tokens": 47, "clusters": 2, "dim": 32},
    "whole_tile": {"tokens": 197, "clusters": 2, "dim": 32, "heads": 1},
    "several_tiles": {"tokens": 150, "clusters": 1, "dim": 24, "heads": 1},
}
"""Those in 16 bits: 24, 99 and 150 tokens to a cluster."""
