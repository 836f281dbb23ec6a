"""Images again from their records, and whether they came out the same."""
