"""Plans a decode before anything runs: chooses tile sizes within a memory budget, and estimates memory and time."""
