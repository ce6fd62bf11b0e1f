"""What is known of a model: its manifest, and the folder or zip that holds its graphs."""
