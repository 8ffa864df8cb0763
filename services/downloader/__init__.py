"""One per worker: finds out what a model's files are and weigh, and that they are complete."""
