"""What is inside a disk image: partitions, volumes, file systems; and the tools to get at them."""
