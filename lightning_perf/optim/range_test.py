"""A learning rate from a range test: the loss while the rate grows, and what can be read from it."""
