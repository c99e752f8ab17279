"""The data side: problems and traces in, verified shards out."""
