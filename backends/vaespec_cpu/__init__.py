"""The engine: fast float32 on a CPU, for every backend whose arrays are in the memory of the process."""
