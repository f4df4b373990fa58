"""Locks that need nothing but listings which are up to date (notes/0011-locks-on-s3.md).

leases    taking and sharing locks
lease     one of them, and how its holder knows that it is lost
holder    who holds one, and whether that process has died
"""
