"""Searches and comparisons over the user's own Trainer."""
