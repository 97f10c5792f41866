"""Files: the journal, results, outputs, recordings, voices."""
