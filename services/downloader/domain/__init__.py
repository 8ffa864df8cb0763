"""What the formats of model files say, without touching a disk or a network."""
