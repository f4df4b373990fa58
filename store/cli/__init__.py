"""The program `vaultway`: a file a noun; each parses, calls one function, prints its result."""
