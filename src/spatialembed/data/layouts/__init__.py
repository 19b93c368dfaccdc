"""Layouts that other programs write: each read into outlines with class names, then converted."""
