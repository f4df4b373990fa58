"""A datastore in a directory, on a local disk or on NFS.

backend       the Backend of any POSIX file system
nfs           that of NFS, and which of the two a directory gets
create        a new datastore
reading       regular files, whole or in part         writing   files that appear whole
directories   listing and removing them
locks         those of this host                       lock_files   those that reach other hosts
nfs_mount     what an NFS mount promises
"""
