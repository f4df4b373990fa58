"""What scripts/bench runs: the same bytes, the same number of threads, in the same run, in
interleaved rounds."""
