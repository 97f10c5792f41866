"""The packaged configuration, glmtts.toml: data that an installed daemon can print and start with."""
