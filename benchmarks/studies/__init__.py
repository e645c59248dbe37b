"""What pretraining is worth, on real images."""
