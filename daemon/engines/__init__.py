"""Engines: what a worker runs. base.py is the contract; one module for each engine."""
