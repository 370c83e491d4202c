"""What each benchmark measures, and how it is shown."""
