"""JetLLM: language models on NVIDIA Jetson, and on any Linux machine."""
