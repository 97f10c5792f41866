"""``glmttsctl demo``: speech and a killed worker, on a daemon of its own."""
