"""Questions about the model, each answered by running it with other ops."""
