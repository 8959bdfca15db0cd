"""What people do with maps: compare classes and methods, find regions and concepts."""
