"""Saliency-guided training on three binary stand-in tasks, and in ``real`` on real images: one map, both, or none."""
