"""From what a user says, in a file, in flags, in variables, to an open datastore."""
