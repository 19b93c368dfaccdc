"""Ways to run the network, each one file; ``spatialembed.engine`` chooses among them."""
