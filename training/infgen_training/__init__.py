"""Training and evaluation of InfGen decoders."""
