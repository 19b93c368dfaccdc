"""Instances to the files of other tools."""
