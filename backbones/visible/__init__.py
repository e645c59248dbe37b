"""Everything that follows from a mask: layouts, window groups, token grids. Pure functions, no networks."""
