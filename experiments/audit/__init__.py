"""Does the audit tell clean checkpoints from fooled ones? On which models, with how many images, and at which thresholds?"""
