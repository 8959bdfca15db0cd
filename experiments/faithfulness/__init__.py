"""Which maps say what the model looked at? All methods, plain and contrastive, by what happens when pixels go."""
