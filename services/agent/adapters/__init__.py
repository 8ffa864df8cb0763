"""What the agent touches: processes, the machine, and the llama.cpp server of the `xllamacpp` wheel."""
