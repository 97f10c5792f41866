"""The stand-in is told the pitch."""
