"""The English half."""
