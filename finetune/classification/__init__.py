"""Image classification: fine-tuning, linear probe, kNN."""
