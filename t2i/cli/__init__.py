"""The command line: parses, calls, prints. The only user of Click; heavy imports stand inside functions."""
