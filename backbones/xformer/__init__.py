"""XFormer (arXiv 2207.07268)."""
