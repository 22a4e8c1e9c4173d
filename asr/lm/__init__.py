"""N-gram language models: queries, files, and their estimation from text."""
