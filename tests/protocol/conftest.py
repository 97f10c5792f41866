"""How hypothesis runs here: without a deadline, because a busy machine is no failure, and with the means to repeat."""

from hypothesis import settings

settings.register_profile("glmtts", deadline=None, print_blob=True)
settings.load_profile("glmtts")
