"""A datastore in a bucket, in PBS's own layout (spec maintenance.md section 1)."""
