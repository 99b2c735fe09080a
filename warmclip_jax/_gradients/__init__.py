"""A tree in, a tree out: norm, clip and skip, which know no schedules."""
