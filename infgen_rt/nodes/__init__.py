"""The chain of nodes from a latent to pixels. A box can be read from each node, which reads from the node before it."""
