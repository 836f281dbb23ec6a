"""What is asked for: requests, prompt files, output names."""
