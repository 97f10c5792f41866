"""Metrics for Prometheus: collected, formatted, served over HTTP."""
