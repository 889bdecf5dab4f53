"""From a batch to what the network is told: vectors, tokens and maps."""
