"""Does the audit tell clean checkpoints from fooled ones? Which ones, with how many images, at which thresholds?"""
