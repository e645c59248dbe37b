"""The commands of finetune/main.py besides training."""
