"""Checks whether this machine can run the daemon: ``python -m glmtts.daemon.doctor``."""
