"""What the methods are made of. Nothing here is public: no name of it may be relied on."""
