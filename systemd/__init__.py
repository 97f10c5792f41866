"""The units for systemd, and what they need of sysusers.d and tmpfiles.d: `glmttsctl install-service` installs them."""
