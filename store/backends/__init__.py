"""Objects by name: where the bytes of a datastore are kept."""
