"""What the library costs, beside its peers: ``make bench``."""
