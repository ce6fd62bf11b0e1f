"""Displays: the sizes that have names, and those of the screens that are attached."""
