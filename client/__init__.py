"""Clients of the speech daemon."""
