"""``glmttsctl top``: a live view of the daemon."""
