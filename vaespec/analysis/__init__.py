"""Questions about the model: each module answers one by running the model with other ops."""
