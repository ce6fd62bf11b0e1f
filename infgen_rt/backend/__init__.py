"""What runs graphs: the protocol of a backend, the choice among those that are here, and the engine that drives one."""
