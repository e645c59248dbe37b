"""Our Triton kernels and when they are used."""
