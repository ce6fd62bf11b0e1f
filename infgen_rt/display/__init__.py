"""Displays: the sizes of named displays and of this machine's screens."""
