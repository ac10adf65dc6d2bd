"""Images and models: the embedded ones, and those that a user hands in."""
