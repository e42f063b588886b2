"""What edits do inside a model, and pictures of it. Needs the `plots` extra."""
