"""Whole examples of other projects, written anew and small, that change over to this package."""
