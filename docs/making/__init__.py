"""What `docs/generate.py` makes the pages of docs/reference from: the code itself."""
