"""The systemd units with their sysusers.d and tmpfiles.d files: `glmttsctl install-service` installs them."""
