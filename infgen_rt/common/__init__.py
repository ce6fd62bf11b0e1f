"""Code that all other subpackages use: pixels, amounts of memory, cancellation, the cache folder, typed JSON."""
