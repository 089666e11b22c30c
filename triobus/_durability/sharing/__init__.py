"""What a bus does that shares the work of its groups with others of the same store."""
