"""Every figure in the README comes from these benchmarks. ``benchmarks/README.md`` lists the commands."""
