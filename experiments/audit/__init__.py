"""Does the audit tell clean checkpoints from fooled ones? On what, from how many images, and at which thresholds."""
