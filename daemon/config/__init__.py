"""The configuration file: read, checked, and resolved on this machine."""
