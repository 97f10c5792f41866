"""The HTTP gateway: OpenAI's speech API, jobs and their queue over HTTP, for the daemon behind it.

It is a client of the daemon's requests socket and holds no queue, no limiter and no table of jobs, so several may run.
"""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("glmtts-supervisor")
