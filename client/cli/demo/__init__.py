"""``glmttsctl demo``: a demonstration with a daemon of its own."""
