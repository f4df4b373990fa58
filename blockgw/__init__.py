"""The images of a datastore as NBD block devices (the Python plugin of nbdkit)."""
