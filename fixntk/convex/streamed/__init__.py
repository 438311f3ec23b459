"""Convex programs whose rows are read from disk, tile by tile."""
