"""Millions of images: a fixed plan, shards that any process may do, the same bytes at the end."""
