"""The Chinese half."""
