"""What every room stands on: number types, amounts of memory, cancellation, the cache folder, typed JSON."""
