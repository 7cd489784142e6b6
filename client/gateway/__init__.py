"""The rerank APIs that search stacks speak (Cohere's and others), in front of ranking servers."""
