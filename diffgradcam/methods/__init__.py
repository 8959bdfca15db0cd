"""The class activation methods."""
