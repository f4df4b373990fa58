"""pxar archives, version 1 and 2 (split): items, encoder, sequential decoder, random access."""
