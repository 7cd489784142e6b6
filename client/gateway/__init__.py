"""The rerank APIs that search stacks speak (Cohere, Jina, text-embeddings-inference), in front of a ranking server."""
