"""What one does with a datastore, one verb a file: backup, restore."""
