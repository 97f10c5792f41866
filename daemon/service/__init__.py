"""The service manager: readiness, watchdog, socket activation."""
