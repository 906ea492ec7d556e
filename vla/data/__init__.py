"""From recorded episodes to training batches."""
