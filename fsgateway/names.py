"""Names that the mount and those who look for it must agree on."""

# The process behind a mount, as an attribute of its root that is not listed.
PID_XATTR = "user.vaultway.pid"
