"""The paper: geometry, networks, loss and clustering, and what they stand on."""
