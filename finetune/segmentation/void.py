"""The value of pixels that belong to no class, in label maps as this package hands them on: classes count from 0."""

VOID = -1
