"""Latents as arrays and files, and the latent spaces that they are in."""
