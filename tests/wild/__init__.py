"""Modules that other people wrote, as they come out of their packages, under every callback."""
