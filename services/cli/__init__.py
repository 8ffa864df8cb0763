"""`muster`: the command. A client of the REST API, and the way to start Muster on one machine."""
