"""`launch/main.py doctor`: checks on the nodes before a long job. The only part of `launch` that uses torch."""
