"""What a request will do, and with what, before anything is drawn."""
