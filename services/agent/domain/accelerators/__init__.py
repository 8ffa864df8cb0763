"""What accelerators say of themselves: one file per vendor turns what its library or tool prints into readings."""
