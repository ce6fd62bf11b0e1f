"""Studies that settled one question each; they are run again when the question comes up."""
