"""The paper: geometry, networks, loss and clustering, and their foundations."""
