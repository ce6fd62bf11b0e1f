"""The chain of nodes from a latent to pixels. Each node can read a box, and reads what it needs from the one before."""
