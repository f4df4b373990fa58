"""A datastore: chunks, namespaces, groups, snapshots, locks, owners, random access to archives."""
