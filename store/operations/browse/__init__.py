"""Looking into snapshots without mounting them: find, compare, read, pick what to restore."""
