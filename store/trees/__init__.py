"""Trees of files, whatever they are read from."""
