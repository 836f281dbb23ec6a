"""Model names; finding, checking, hashing and fetching weights."""
