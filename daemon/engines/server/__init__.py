"""An engine that is a server: the worker starts a program with OpenAI's speech API and speaks through it."""
