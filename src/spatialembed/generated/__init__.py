"""Scenes with exact truth: nuclei, shapes, streets. Imported late."""
