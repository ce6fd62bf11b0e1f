"""Runs graphs: the protocol of backends, the choice among the installed ones, and the engine that runs the graphs."""
