"""Everything a Proxmox Backup Server datastore is. Knows nothing of the gateways."""
