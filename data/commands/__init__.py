"""The commands of data/main.py."""
