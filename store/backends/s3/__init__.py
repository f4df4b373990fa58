"""A datastore in a bucket, in PBS's own layout (spec maintenance.md section 1).

config      where it is, and how to talk to it        tls      whom to trust
backend     the Backend; opening and creating one
keys        names and keys                            marker   whose bucket it is
temporary   indexes on their way
locks       locks that are leases
http        one S3 operation each, and all that it takes
"""
