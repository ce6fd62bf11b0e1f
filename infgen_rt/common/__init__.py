"""Code that all other rooms use: types of pixels, amounts of memory, cancellation, the cache folder, typed JSON."""
