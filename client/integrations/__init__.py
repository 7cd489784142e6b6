"""Components for LangChain, LlamaIndex and Haystack, which ask ranking servers over gRPC; each needs its framework."""
