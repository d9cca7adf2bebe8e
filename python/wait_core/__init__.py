"""wait-core: scheduling core for LLM inference."""
