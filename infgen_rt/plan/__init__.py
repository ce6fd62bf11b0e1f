"""Planning a decode: chooses tile sizes within a memory budget and estimates the costs before anything runs."""
