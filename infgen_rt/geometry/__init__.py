"""Geometry: boxes, sizes, tokens over cells, tiles and stages, as frozen values and pure functions."""
