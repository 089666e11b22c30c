"""What a store adds to a bus: the log comes in, and what is finished goes out."""
