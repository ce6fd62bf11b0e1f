"""The chain from a latent to pixels: each node can be asked for a box, and asks the one before it for what it needs."""
