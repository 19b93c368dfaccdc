"""The command line: verbs, options, demo and bench."""
