"""Our kernels against the plain ways, one operation at a time."""
