"""The methods that the paper stands beside, from their equations: outputs, loss, grouping."""
