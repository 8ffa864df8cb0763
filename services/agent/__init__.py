"""One per worker: makes its machine look like its assignment says, and reports what it sees."""
