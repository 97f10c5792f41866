"""``glmttsctl batch``: jobs from the lines of a file."""
