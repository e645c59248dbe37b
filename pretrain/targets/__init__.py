"""What the decoder predicts."""
