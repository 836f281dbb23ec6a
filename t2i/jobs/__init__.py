"""The service layer: from options to a request, to a plan, to images; batches and replay. No Click, no HTTP."""
