"""HTTP: a server of models and its page; one process never decodes, another never listens."""
