"""Benchmarks. Every figure in the README comes from them, and ``benchmarks/README.md`` lists the commands."""
