"""File systems read by a stock Linux kernel in a small virtual machine of their own.

The kernel replays journals, which no parser does, into an overlay that is thrown away. A hostile
disk meets no kernel but that one: the machine has no network, no other disk, and QEMU around it
may do next to nothing. Note 0020 says why it is made as it is.
"""
