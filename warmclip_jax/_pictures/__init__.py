"""What schedules and runs look like."""
