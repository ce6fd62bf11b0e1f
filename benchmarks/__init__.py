"""Every figure in the README comes from here; ``benchmarks/README.md`` lists the commands."""
