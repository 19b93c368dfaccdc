"""spatialembed in napari: the form, the process of the model, and what lies between them."""
