"""Voices: those for all, which operators keep, and those that clients keep for themselves."""
