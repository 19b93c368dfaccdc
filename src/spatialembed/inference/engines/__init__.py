"""Ways to run the network: torch, compiled, onnxruntime, OpenVINO."""
