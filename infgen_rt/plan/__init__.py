"""How a decode will go: tile sizes within a memory budget, counted and estimated before anything runs."""
