"""One module a target format."""
