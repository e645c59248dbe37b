"""The commands of backbones/main.py."""
