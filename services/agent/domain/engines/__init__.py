"""One pure function per engine: an assigned instance becomes a command line."""
