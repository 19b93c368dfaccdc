"""Networks: a file each."""
