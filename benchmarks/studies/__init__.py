"""Studies, each of which answered one question. They can be run again when the question comes up."""
