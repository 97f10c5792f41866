"""Requests of clients and operators, health, and the daemon's own drain and stop."""
