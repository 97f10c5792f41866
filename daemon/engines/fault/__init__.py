"""The engine that fails on request, for tests."""
