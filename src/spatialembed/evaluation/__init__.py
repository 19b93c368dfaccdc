"""How good a model is: metrics, scores, reports and the tuning of thresholds."""
