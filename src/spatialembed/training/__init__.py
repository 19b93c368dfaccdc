"""How a model learns: options, crops, the step, validation, the folder of a run."""
