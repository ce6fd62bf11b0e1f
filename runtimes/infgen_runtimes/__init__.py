"""Backends for infgen_rt, one module each; they are found through entry points, not imported from here."""
