"""Which of our C modules can be used. Each is optional: what it does, Python does as well, or not.

One that was not built is not missed. One that is there and does not fit is told of, once: it was
built from other sources than the Python around it, or for another Python.
"""

import logging
from functools import cache
from importlib import import_module

log = logging.getLogger(__name__)

INTERFACES = {
    "store.format._chunker": 1,
    "store.format._md5": 1,
    "store.format.pxar._entries": 1,
    "store.operations._inode": 1,
    "fsgateway._fuse_extra": 2,
}
"""What we expect as `INTERFACE` in each: counted up, in C and here, when a function in it is new or
takes or returns something else."""


@cache
def is_usable(name: str) -> bool:
    """Whether a C module is there and fits; it is imported then."""
    try:
        interface = getattr(import_module(name), "INTERFACE", 0)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            log.debug("%s was not built", name)
        else:
            log.warning("%s is not used: %s; run scripts/setup", name, error)
        return False
    if interface != INTERFACES[name]:
        log.warning("%s is not used, it was built from other sources; run scripts/setup", name)
        return False
    return True


def import_failure(error: ImportError) -> str:
    """What users are told of a package that there is no doing without."""
    return f"{error}: a package is missing, or for another Python; run scripts/setup"
