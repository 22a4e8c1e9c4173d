"""A training run as one web page."""
