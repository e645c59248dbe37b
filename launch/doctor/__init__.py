"""The checks that run on the nodes before a long job does: `launch/main.py doctor`. The only part of `launch` that uses torch."""
