"""What POSIX and Linux say of a file system's calls: asked of ours and of tmpfs, and compared.

calls    system calls by name, as Python has them or through libc
ground   a place to stand on: what is made there before a call, and what is there after it
cases    one call on one thing, or on two, for all calls and things, as root and as others
stories  what takes several calls: inheritance, setuid bits, files without a name, locks, maps

`python -m tests.posix DIRECTORY WHAT` prints one line of JSON for each: its name, its outcome.
"""
