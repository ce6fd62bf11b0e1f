"""Running graphs: the protocol of backends, the choice among the installed ones, and the engine that drives one."""
