"""What the library costs, compared with others: ``make bench``."""
