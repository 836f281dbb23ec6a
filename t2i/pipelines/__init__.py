"""From a saved model to pictures. Importing this package imports nothing heavy; its modules are imported by name."""
