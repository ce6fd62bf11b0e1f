"""Code that all other packages use: number types, amounts of memory, cancellation, the cache folder, typed JSON."""
