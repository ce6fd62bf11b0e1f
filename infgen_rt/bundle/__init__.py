"""Bundles: a model's manifest, and the folder or zip that holds its graphs."""
