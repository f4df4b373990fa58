"""A stand-in for systemd's automount: at the first visit of DIRECTORY it runs COMMAND, once.

usage: automounter.py DIRECTORY COMMAND...

Prints `ready` when visits are caught. As systemd does, it runs the command in its own process
group: only those in it walk into the directory without being a visit themselves. Ends with the
command's exit code; what is mounted stays.
"""

import fcntl
import os
import struct
import subprocess
import sys

# Linux uapi/linux/auto_fs.h, autofs_v5_packet: version, type, token, and what we do not need.
PACKET = struct.Struct("=iiI")
PACKET_SIZE = 304
AUTOFS_IOC_READY, AUTOFS_IOC_FAIL = 0x9360, 0x9361


def main(directory: str, command: list[str]) -> int:
    os.setpgid(0, 0)
    visits, to_us = os.pipe()
    options = f"fd={to_us},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    subprocess.run(
        ["mount", "-i", "-t", "autofs", "-o", options, "automounter", directory],
        check=True, pass_fds=[to_us],
    )  # fmt: skip
    os.close(to_us)
    trap = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    print("ready", flush=True)
    token = PACKET.unpack_from(os.read(visits, PACKET_SIZE))[2]
    done = subprocess.run(command, check=False)
    fcntl.ioctl(trap, AUTOFS_IOC_FAIL if done.returncode else AUTOFS_IOC_READY, token)
    return done.returncode


sys.exit(main(sys.argv[1], sys.argv[2:]))
