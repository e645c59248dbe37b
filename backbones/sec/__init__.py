"""SecViT, SEC-Swin and SEC-FasterViT (arXiv 2405.13337)."""
