"""Every figure in the README comes from here: ``python -m benchmarks.speed`` and ``python -m benchmarks.cost``."""
