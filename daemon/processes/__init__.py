"""Worker processes: started, watched, signalled, and removed with their descendants."""
